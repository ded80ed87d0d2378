//! Builds the fake driver, and runs a test of this program again under it.

pub mod control;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a run of a test under the fake driver came to.
#[derive(Debug)]
#[allow(dead_code, reason = "each test binary uses what it needs")]
pub struct Run {
    /// What the test printed with [`say`].
    pub said: Vec<String>,
    /// What the driver counted.
    pub counts: BTreeMap<String, i64>,
    /// How long it took.
    pub took: Duration,
}

impl Run {
    /// A number of the driver's report.
    pub fn count(&self, name: &str) -> i64 {
        self.counts[name]
    }

    /// Asserts that nothing is left of what the driver handed out, and that the driver was used as it must be.
    pub fn assert_clean(&self, about: &str) {
        for name in LEFT {
            assert_eq!(self.count(name), 0, "{about}: {name}: {self:?}");
        }
    }
}

/// Counts that are zero after a program that has freed all it had and has called nothing wrongly.
const LEFT: &[&str] = &[
    "misuse",
    "unpopped",
    "contexts",
    "bytes",
    "allocations",
    "pinned",
    "streams",
    "events",
    "graphs",
    "execs",
    "modules",
];

/// Says something to the test that runs this one.
pub fn say(text: impl std::fmt::Display) {
    println!("\nsaid: {text}");
}

/// The folder that holds the fake `libcuda.so.1`.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = fresh_folder("fake-driver");
        std::fs::write(folder.join("kernels.inc"), kernels(&root.join("kernels"))).unwrap();
        let mut cc = Command::new("cc");
        cc.args([
            "-std=c11",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-pthread",
        ]);
        cc.arg("-I").arg(&folder).arg("-I").arg(root.join("kernels"));
        cc.arg(root.join("tests/fake_driver/fake_cuda.c")).arg("-o").arg(folder.join("libcuda.so.1"));
        let output = cc.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder
    })
}

/// An empty folder of this process.
pub fn fresh_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Rows `{"matmul_one", sizeof(KigoMatmul)},` for all kernels: each takes one struct of `launch.h`.
fn kernels(folder: &Path) -> String {
    let mut rows = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for kernel in text.split("extern \"C\" __global__ ").skip(1) {
            let (head, parameter) = kernel.split_once("const __grid_constant__ ").unwrap();
            let name = head.trim_end_matches(['(', ' ']);
            // Either a plain name, or KIGO_NAME(name, ...).
            let name = match name.split_once("KIGO_NAME(") {
                Some((_, inner)) => inner.split(',').next().unwrap(),
                None => name.split_whitespace().last().unwrap(),
            };
            // Those of one macro differ in their ends.
            let name = name.split("_##").next().unwrap();
            let parameter = parameter.split_whitespace().next().unwrap();
            rows += &format!("{{\"{name}\", sizeof({parameter})}},\n");
        }
    }
    rows
}

/// Runs the ignored test `test` of this program in a process of its own, under the fake driver and these variables.
///
/// A process that fails, or takes more than two minutes, fails the caller.
pub fn run(test: &str, variables: &[(&str, &str)]) -> Run {
    run_with(folder(), test, variables)
}

/// As [`run`], in this folder.
#[allow(dead_code, reason = "each test binary uses what it needs")]
pub fn run_in(current: &Path, test: &str, variables: &[(&str, &str)]) -> Run {
    finish(folder(), current, test, variables)
}

/// As [`run`], with the driver that is in `folder`.
pub fn run_with(folder: &Path, test: &str, variables: &[(&str, &str)]) -> Run {
    finish(folder, Path::new("."), test, variables)
}

fn finish(folder: &Path, current: &Path, test: &str, variables: &[(&str, &str)]) -> Run {
    static SERIAL: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fake-{}-{serial}", std::process::id()));
    let mut command = Command::new("timeout");
    command.arg("120").arg(std::env::current_exe().unwrap()).args([test, "--exact", "--ignored", "--nocapture"]);
    command.args(["--test-threads", "1"]).current_dir(current);
    command.env_remove("CUDA_VISIBLE_DEVICES").env("LD_LIBRARY_PATH", folder).env("FAKE_CUDA_REPORT", &report);
    command.envs(variables.iter().copied());
    let start = Instant::now();
    let output = command.output().unwrap();
    let took = start.elapsed();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test} with {variables:?}: {}\n{text}\n{errors}", output.status);
    assert!(text.contains("1 passed"), "{test} was not run: {text}");
    let counted = std::fs::read_to_string(&report).unwrap_or_default();
    let _ = std::fs::remove_file(&report);
    Run {
        said: text.lines().filter_map(|line| line.strip_prefix("said: ")).map(str::to_owned).collect(),
        counts: counted
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect(),
        took,
    }
}
