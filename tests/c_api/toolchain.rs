//! Compiles, links and runs C programs against the library that cargo built for these tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What the static library needs from the system.
pub const SYSTEM_LIBRARIES: [&str; 5] = ["-lpthread", "-ldl", "-lm", "-lgcc_s", "-lc"];
pub const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];
pub const SANITIZE: &str = "-fsanitize=address,undefined";

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A model small enough for every test.
pub fn model() -> PathBuf {
    let path = root().join("tests/data/tiny-llama.gguf");
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// Where the tests put what they build.
pub fn scratch() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c_api");
        std::fs::create_dir_all(&path).unwrap();
        path
    })
}

/// The static library, which cargo puts beside the test program.
pub fn static_library() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("libkigo.a");
    assert!(path.exists(), "{} is missing", path.display());
    path
}

/// The shared library as it is shipped, linked once.
pub fn shared_library() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let output = scratch().join("shared");
        let mut link = Command::new(root().join("tools/link-shared.sh"));
        succeed(link.arg(static_library()).arg(&output));
        output.join("libkigo.so.0")
    })
}

/// Runs a command and gives what it printed; fails with all of it if the command does.
pub fn succeed(command: &mut Command) -> String {
    let output: Output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    text
}

/// A compiler run with the header in reach and every warning an error.
pub fn compile(compiler: &str, standard: &str) -> Command {
    let mut command = Command::new(compiler);
    command.arg(format!("-std={standard}")).args(WARNINGS).arg("-I").arg(root().join("include"));
    command
}

/// Whether the C compiler can build programs that watch their memory, leaks included.
pub fn sanitizes() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let source = scratch().join("sanitize.c");
        std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
        let program = scratch().join("sanitize");
        let mut command = Command::new("cc");
        let built = command.arg(SANITIZE).arg(&source).arg("-o").arg(&program).output();
        built.is_ok_and(|output| output.status.success())
            && Command::new(&program).status().is_ok_and(|status| status.success())
    })
}

/// How a program gets the library.
#[derive(Clone, Copy, PartialEq)]
pub enum Link {
    Static,
    Shared,
    /// By dlopen, or not at all.
    None,
}

/// Builds a C program from `source`, watching its memory where the compiler can and the library is static.
pub fn build(source: &Path, name: &str, link: Link) -> PathBuf {
    build_with(source, name, link, link != Link::Shared && sanitizes())
}

/// Builds a C program from `source` as it is.
pub fn build_plain(source: &Path, name: &str, link: Link) -> PathBuf {
    build_with(source, name, link, false)
}

fn build_with(source: &Path, name: &str, link: Link, sanitized: bool) -> PathBuf {
    let program = scratch().join(name);
    let mut command = compile("cc", "c99");
    command.args(["-g", "-O1", "-D_POSIX_C_SOURCE=200809L", "-I"]).arg(root().join("tests/c_api"));
    if sanitized {
        command.args([SANITIZE, "-fno-sanitize-recover=all"]);
    }
    command.arg(source).arg("-o").arg(&program);
    match link {
        Link::Static => command.arg(static_library()),
        Link::Shared => {
            let folder = shared_library().parent().unwrap();
            command.arg("-L").arg(folder).arg("-lkigo").arg(format!("-Wl,-rpath,{}", folder.display()))
        }
        Link::None => &mut command,
    };
    succeed(command.args(SYSTEM_LIBRARIES));
    program
}

/// Builds a C++ program like a C program with the static library, without exceptions and RTTI.
pub fn build_cpp(source: &Path, name: &str, standard: &str) -> PathBuf {
    let program = scratch().join(name);
    let mut command = compile("c++", standard);
    command.args(["-g", "-O1", "-fno-exceptions", "-fno-rtti"]);
    if sanitizes() {
        command.args([SANITIZE, "-fno-sanitize-recover=all"]);
    }
    command.arg(source).arg(static_library()).arg("-o").arg(&program);
    succeed(command.args(SYSTEM_LIBRARIES));
    program
}

/// Runs a program with a limit on its time, so that a hang fails the test.
pub fn run(program: &Path, arguments: &[&Path]) -> String {
    let mut command = Command::new("timeout");
    command.arg("300").arg(program).args(arguments);
    succeed(&mut command)
}
