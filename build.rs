//! Names the shared library and keeps it loaded: threads of the library must never outlive its code. With the feature
//! `cuda` it compiles the kernels: `kernels/*.cu` to fat binaries that the library embeds.
//!
//! nvcc 12.4 or later is looked for in `NVCC`, `CUDA_HOME`, `PATH`, /usr/local/cuda and build/cuda, where the Makefile
//! installs it. `KIGO_CUDA_ARCHS` says what to compile for, as a list with commas: `80` is machine code for sm_80,
//! `90a` for sm_90a, `80ptx` is PTX for sm_80 and all that comes after; `all` is every architecture that has one of
//! its own, with PTX for the rest. Without it the code is for the GPUs of this machine, or for `90a,80ptx`. With
//! `KIGO_CUDA_LINES` set, profilers and sanitizers see lines of the source.
//!
//! A unit is compiled again when its command, its source or a header that it includes has changed. All profiles share
//! what is compiled, through `kigo-kernels` in the target folder.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if variable("CARGO_CFG_TARGET_OS").as_deref() == Some("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkigo.so.0");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
    if variable("CARGO_FEATURE_CUDA").is_some()
        && let Err(message) = embed_kernels()
    {
        eprintln!("kigo: {message}");
        exit(1);
    }
}

type Result<T> = std::result::Result<T, String>;

const ALL_ARCHS: &str = "80,86,89,90a,80ptx,90ptx";
const DEFAULT_ARCHS: &str = "90a,80ptx";
/// The oldest nvcc that will do, and the oldest architecture that the kernels are written for.
const OLDEST_NVCC: (u32, u32) = (12, 4);
const OLDEST_ARCH: u32 = 80;

/// Machine code is compressed too, which nvcc does not do unasked.
const FLAGS: [&str; 6] =
    ["-O3", "-std=c++17", "-fatbin", "--expt-relaxed-constexpr", "-Xptxas=-v", "-Xfatbin=-compress-all"];
/// For profilers: the lines of the source make the library half as large again.
const LINES: &str = "-lineinfo";

/// What is compiled to one fat binary.
struct Unit {
    name: String,
    source: PathBuf,
    /// The tensor type, where the source is compiled for each.
    quant: Option<String>,
}

struct Nvcc {
    path: PathBuf,
    version: (u32, u32),
}

fn embed_kernels() -> Result<()> {
    for name in ["NVCC", "CUDA_HOME", "KIGO_CUDA_ARCHS", "KIGO_CUDA_LINES"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    for path in ["kernels", "src/quant/mod.rs"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(variable("OUT_DIR").ok_or("OUT_DIR is not set")?).join("kernels");
    fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let nvcc = find_nvcc(&root)?;
    println!("cargo:rerun-if-changed={}", nvcc.path.display());
    let archs = archs()?;
    let units = units(&root)?;
    let failures = Mutex::new(Vec::new());
    let next = Mutex::new(units.iter());
    let jobs = variable("NUM_JOBS").and_then(|jobs| jobs.parse().ok()).unwrap_or(1_usize);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, units.len().max(1)) {
            scope.spawn(|| {
                while let Some(unit) = taken(&next) {
                    if let Err(message) = compile(unit, &nvcc, &archs, &root, &out) {
                        failures.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(message);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !failures.is_empty() {
        return Err(failures.join("\n"));
    }
    remove_others(&units, &out);
    write_table(&units, &nvcc, &archs, &out)
}

fn taken<'a>(next: &Mutex<std::slice::Iter<'a, Unit>>) -> Option<&'a Unit> {
    next.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn find_nvcc(root: &Path) -> Result<Nvcc> {
    let mut places = Vec::new();
    places.extend(variable("NVCC").map(PathBuf::from));
    places.extend(variable("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path).map(|folder| folder.join("nvcc")));
    places.push("/usr/local/cuda/bin/nvcc".into());
    places.push(root.join("build/cuda/bin/nvcc"));
    let mut unfit = String::new();
    for path in places.into_iter().filter(|path| path.is_file()) {
        match nvcc_version(&path) {
            Some(version) if version >= OLDEST_NVCC => return Ok(Nvcc { path, version }),
            Some((major, minor)) => _ = write!(unfit, "; {} is {major}.{minor}", path.display()),
            None => _ = write!(unfit, "; {} does not run", path.display()),
        }
    }
    let (major, minor) = OLDEST_NVCC;
    Err(format!(
        "no nvcc {major}.{minor} or later in NVCC, CUDA_HOME, PATH, /usr/local/cuda{unfit}; run `make`, which installs \
         it into build/cuda, or build for the CPU only with `--no-default-features`"
    ))
}

fn nvcc_version(path: &Path) -> Option<(u32, u32)> {
    let output = Command::new(path).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (major, rest) = text.split_once("release ")?.1.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn archs() -> Result<Vec<String>> {
    let list = match variable("KIGO_CUDA_ARCHS") {
        Some(list) if list == "all" => ALL_ARCHS.into(),
        Some(list) => list,
        None => archs_of_this_machine().unwrap_or(DEFAULT_ARCHS.into()),
    };
    let archs: Vec<String> = list.split(',').map(|arch| arch.trim().to_string()).collect();
    for arch in &archs {
        let digits = arch.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let fits = matches!(&arch[digits.len()..], "" | "a" | "f" | "ptx");
        if !fits || !digits.parse::<u32>().is_ok_and(|number| number >= OLDEST_ARCH) {
            return Err(format!(
                "KIGO_CUDA_ARCHS: expected \"all\" or a list such as \"{ALL_ARCHS}\", of {OLDEST_ARCH} and later, \
                 found {arch:?}"
            ));
        }
    }
    Ok(archs)
}

fn archs_of_this_machine() -> Option<String> {
    let query = ["--query-gpu=compute_cap", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    let numbers: BTreeSet<u32> = text.lines().filter_map(|line| line.trim().replace('.', "").parse().ok()).collect();
    let archs: Vec<String> = numbers
        .into_iter()
        .filter(|number| *number >= OLDEST_ARCH)
        .map(|number| if number == 90 { "90a".into() } else { number.to_string() })
        .collect();
    (!archs.is_empty()).then(|| archs.join(","))
}

/// Every source in `kernels`; `matmul.cu` once for each tensor type whose header is there.
fn units(root: &Path) -> Result<Vec<Unit>> {
    let kernels = root.join("kernels");
    let entries = fs::read_dir(&kernels).map_err(|error| format!("{}: {error}", kernels.display()))?;
    let mut sources: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let mut units = Vec::new();
    for source in sources {
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name != "matmul" {
            units.push(Unit { name, source, quant: None });
            continue;
        }
        for quant in quant_types(root)? {
            if kernels.join("quant").join(quant.to_lowercase() + ".cuh").is_file() {
                units.push(Unit { name: format!("{name}_{quant}"), source: source.clone(), quant: Some(quant) });
            }
        }
    }
    Ok(units)
}

/// The names in the table of `src/quant/mod.rs`.
fn quant_types(root: &Path) -> Result<Vec<String>> {
    let path = root.join("src/quant/mod.rs");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let rows = text.lines().skip_while(|line| *line != "quant_types! {").skip(1).take_while(|line| *line != "}");
    let names: Vec<String> = rows.filter_map(|row| Some(row.split_once(" = ")?.0.trim().to_string())).collect();
    if names.is_empty() { Err(format!("{}: found no table quant_types!", path.display())) } else { Ok(names) }
}

/// What the compilation of a unit leaves.
struct Files {
    fatbin: PathBuf,
    /// What ptxas says about registers and memory.
    report: PathBuf,
    /// The files that were read, as nvcc lists them.
    dependencies: PathBuf,
    /// The fingerprint of all that went in; written last.
    stamp: PathBuf,
}

impl Files {
    fn at(folder: &Path, unit: &Unit) -> Files {
        let file = |extension: &str| folder.join(format!("{}.{extension}", unit.name));
        Files { fatbin: file("fatbin"), report: file("ptxas"), dependencies: file("d"), stamp: file("stamp") }
    }

    /// Whether they are what `command` would make now.
    fn are_current(&self, command: &str, root: &Path) -> bool {
        let stamp = fs::read_to_string(&self.stamp).ok();
        stamp.is_some() && stamp == fingerprint(command, &self.dependencies, root)
    }

    fn copy_to(&self, other: &Files) -> std::io::Result<()> {
        let _ = fs::remove_file(&other.stamp);
        fs::copy(&self.fatbin, &other.fatbin)?;
        fs::copy(&self.report, &other.report)?;
        fs::copy(&self.dependencies, &other.dependencies)?;
        fs::copy(&self.stamp, &other.stamp).map(|_| ())
    }
}

/// The folder that the builds of all profiles share, locked until the file is dropped.
fn shared_folder(out: &Path) -> std::io::Result<(PathBuf, fs::File)> {
    let target = out.ancestors().nth(5).unwrap_or(out);
    let folder = target.join("kigo-kernels");
    fs::create_dir_all(&folder)?;
    let lock = fs::File::create(folder.join("lock"))?;
    lock.lock()?;
    Ok((folder, lock))
}

/// Makes the files of a unit current: they are, another build has them, or nvcc makes them.
fn compile(unit: &Unit, nvcc: &Nvcc, archs: &[String], root: &Path, out: &Path) -> Result<()> {
    let files = Files::at(out, unit);
    let mut command = Command::new(&nvcc.path);
    // The fat binary has the name of its source as it is given, and no library is to hold a path of the machine.
    let source = unit.source.strip_prefix(root).unwrap_or(&unit.source);
    command.current_dir(root).args(FLAGS).args(variable("KIGO_CUDA_LINES").map(|_| LINES)).arg("-MD");
    for arch in archs {
        let (number, code) = match arch.strip_suffix("ptx") {
            Some(number) => (number, "compute"),
            None => (arch.as_str(), "sm"),
        };
        command.arg(format!("-gencode=arch=compute_{number},code={code}_{number}"));
    }
    command.args(unit.quant.iter().map(|quant| format!("-DKIGO_QUANT={quant}"))).arg(source);
    let words = format!("{:?} {command:?}", nvcc.version);
    if files.are_current(&words, root) {
        return Ok(());
    }
    if let Ok((folder, _lock)) = shared_folder(out) {
        let shared = Files::at(&folder, unit);
        if shared.are_current(&words, root) && shared.copy_to(&files).is_ok() {
            return Ok(());
        }
    }
    let _ = fs::remove_file(&files.stamp);
    command.arg("-MF").arg(&files.dependencies).arg("-o").arg(&files.fatbin);
    let output = command.output().map_err(|error| format!("{}: {error}", nvcc.path.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let said_else = String::from_utf8_lossy(&output.stdout);
        let lines = said.lines().chain(said_else.lines()).filter(|line| !line.starts_with("ptxas info"));
        return Err(format!("nvcc failed for {}:\n{}", unit.name, lines.collect::<Vec<_>>().join("\n")));
    }
    for line in said.lines().filter(|line| line.contains("warning")) {
        println!("cargo:warning={}: {line}", unit.name);
    }
    let write = |path: &Path, text: &str| fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()));
    write(&files.report, &said)?;
    if let Some(stamp) = fingerprint(&words, &files.dependencies, root) {
        write(&files.stamp, &stamp)?;
        if let Ok((folder, _lock)) = shared_folder(out) {
            // Nothing is lost where it cannot be written.
            let _ = files.copy_to(&Files::at(&folder, unit));
        }
    }
    Ok(())
}

/// A number for the command and for the contents of what was compiled, as nvcc listed it.
fn fingerprint(command: &str, dependencies: &Path, root: &Path) -> Option<String> {
    let mut hasher = DefaultHasher::new();
    command.hash(&mut hasher);
    let text = fs::read_to_string(dependencies).ok()?.replace("\\\n", " ");
    let kernels = root.join("kernels");
    let paths: BTreeSet<PathBuf> = text.split_whitespace().map(|path| root.join(path)).collect();
    for path in paths.iter().filter(|path| path.starts_with(&kernels)) {
        (path, fs::read(path).ok()?).hash(&mut hasher);
    }
    Some(format!("{:016x}", hasher.finish()))
}

/// Removes what units that are no more have left, so that the reports are those of the library.
fn remove_others(units: &[Unit], out: &Path) {
    for path in fs::read_dir(out).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
        if !units.iter().any(|unit| path.file_stem().is_some_and(|stem| stem == unit.name.as_str())) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Writes what `src/backend/cuda/module.rs` includes.
fn write_table(units: &[Unit], nvcc: &Nvcc, archs: &[String], out: &Path) -> Result<()> {
    let mut text = String::from(
        "/// The embedded kernels: name of the unit, fat binary.\n\
         pub static FATBINS: &[(&str, &[u8])] = &[\n",
    );
    for unit in units {
        let path = out.join(format!("{}.fatbin", unit.name));
        let _ = writeln!(text, "    ({:?}, &Aligned(*include_bytes!({:?})).0),", unit.name, path);
    }
    let (major, minor) = nvcc.version;
    let _ = write!(
        text,
        "];\n\n\
         /// What the kernels are compiled for, as `KIGO_CUDA_ARCHS` has it.\n\
         pub const ARCHS: &str = {:?};\n\n\
         /// The CUDA version of their compiler: major, minor.\n\
         pub const TOOLKIT: (u32, u32) = ({major}, {minor});\n",
        archs.join(",")
    );
    let path = out.with_file_name("fatbins.rs");
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}
