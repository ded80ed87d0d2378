//! The examples in five languages: a haiku and a chat each, on the CPU, and what they say when something fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/models.rs"]
mod models;
#[allow(dead_code, reason = "shared with the tests of the C API")]
#[path = "c_api/toolchain.rs"]
mod toolchain;
#[path = "common/tools.rs"]
mod tools;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use toolchain::{Link, SYSTEM_LIBRARIES, WARNINGS, root, scratch, shared_library, succeed};

/// How to run the program of this name, `haiku` or `chat`; None where the language is missing.
type Build = fn(&str) -> Option<Command>;

fn example(path: &str) -> PathBuf {
    root().join("examples").join(path)
}

fn library_folder() -> &'static Path {
    shared_library().parent().unwrap()
}

/// Runs `build` for this program unless a test has done so already. One at a time: all tests want the same programs.
fn built(program: &Path, build: impl FnOnce()) {
    static BUILT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !built.contains(program) {
        build();
        built.insert(program.to_owned());
    }
}

fn c(name: &str) -> Option<Command> {
    // With the address sanitizer, where there is one: what is not freed fails the test.
    let program = scratch().join(format!("example-{name}"));
    built(&program, || {
        toolchain::build(&example(&format!("{name}.c")), &format!("example-{name}"), Link::Static);
    });
    Some(Command::new(program))
}

fn cpp(name: &str) -> Option<Command> {
    let program = scratch().join(format!("example-cpp-{name}"));
    built(&program, || {
        let mut command = Command::new("c++");
        command
            .args(["-std=c++17", "-fno-exceptions", "-fno-rtti"])
            .args(WARNINGS)
            .arg("-I")
            .arg(root().join("include"));
        command.arg(example(&format!("cpp/{name}.cpp"))).arg("-o").arg(&program).arg("-L").arg(library_folder());
        succeed(command.arg("-lkigo").args(SYSTEM_LIBRARIES));
    });
    Some(Command::new(program))
}

fn go(name: &str) -> Option<Command> {
    if !tools::have(&["go", "pkg-config"]) {
        return None;
    }
    let (folder, program) = (scratch().join(format!("go-{name}")), scratch().join(format!("example-go-{name}")));
    built(&program, || {
        std::fs::create_dir_all(&folder).unwrap();
        let package = format!(
            "Name: kigo\nDescription: for tests\nVersion: {}\nLibs: -L{} -lkigo\nCflags: -I{}\n",
            env!("CARGO_PKG_VERSION"),
            library_folder().display(),
            root().join("include").display()
        );
        std::fs::write(folder.join("kigo.pc"), package).unwrap();
        let mut command = Command::new("go");
        command.current_dir(example("go")).env("PKG_CONFIG_PATH", &folder).env("CGO_ENABLED", "1");
        succeed(command.args(["build", "-o"]).arg(&program).args(["kigo.go", &format!("{name}.go")]));
    });
    Some(Command::new(program))
}

fn node(name: &str) -> Option<Command> {
    if !tools::have(&["node", "npm"]) {
        return None;
    }
    let folder = scratch().join("node");
    built(&folder, || {
        std::fs::create_dir_all(&folder).unwrap();
        for file in ["package.json", "kigo.mjs", "chat.mjs", "haiku.mjs"] {
            std::fs::copy(example("node").join(file), folder.join(file)).unwrap();
        }
        succeed(Command::new("npm").current_dir(&folder).args(["install", "--no-audit", "--no-fund", "--silent"]));
    });
    let mut command = Command::new("node");
    command.arg(folder.join(format!("{name}.mjs")));
    Some(command)
}

fn python(name: &str) -> Option<Command> {
    if !tools::have(&["python3"]) {
        return None;
    }
    let mut command = Command::new("python3");
    command.arg("-B").arg(example("python").join(format!("{name}.py")));
    Some(command)
}

/// Runs a program with these arguments and this standard input.
fn run(mut command: Command, arguments: &[&Path], input: &str) -> Output {
    command.args(arguments).env("LD_LIBRARY_PATH", library_folder()).env_remove("KIGO_LIBRARY");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that has failed does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn chat_of(build: Build) -> Option<String> {
    let input = "Write a haiku.\nSay \"tab\tand \\ slash\".\nSchreibe es auf Japanisch.\n";
    let output = run(build("chat")?, &[&toolchain::model(), Path::new("cpu")], input);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned())
}

/// What the chat in C says, which all others must say too: one library, one seed.
fn check_chat(build: Build) {
    let Some(said) = chat_of(build) else { return };
    assert!(said.starts_with("> Rain counts on the roof,\n") && said.ends_with("> "), "{said}");
    assert_eq!(said.matches("\n> ").count(), 3, "{said}");
    assert_eq!(Some(said), chat_of(c));
}

fn check_failure(build: Build) {
    for name in ["chat", "haiku"] {
        let Some(command) = build(name) else { return };
        let output = run(command, &[Path::new("/no/such/model.gguf"), Path::new("cpu")], "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with(&format!("{name}: /no/such/model.gguf: cannot open")), "{said}");
        let output = run(build(name).unwrap(), &[&toolchain::model(), Path::new("abacus")], "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.starts_with(&format!("{name}: device: expected \"cuda\"")), "{said}");
    }
}

fn check_haiku(build: Build) {
    let Some(model) = models::cached(models::SMOLLM2) else { return };
    let Some(command) = build("haiku") else { return };
    let output = run(command, &[&model, Path::new("cpu")], "");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let (word, rest) = said.split_once("minute: ").unwrap().1.split_once('\n').unwrap();
    let plain = |text: &str| text.to_lowercase().replace('-', " ");
    assert!(plain(rest).contains(&plain(word)), "{said}");
}

macro_rules! languages {
    ($($language:ident)*) => {$(
        mod $language {
            #[test]
            fn chat() {
                super::check_chat(super::$language);
            }

            #[test]
            fn failure() {
                super::check_failure(super::$language);
            }

            #[test]
            fn haiku() {
                super::check_haiku(super::$language);
            }
        }
    )*};
}

languages! { c cpp go node python }

#[test]
fn programs_are_short() {
    for folder in ["", "cpp", "go", "node", "python"] {
        for entry in std::fs::read_dir(example(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let lines = std::fs::read_to_string(&path).unwrap().lines().count();
                assert!(lines <= 100, "{} has {lines} lines", path.display());
            }
        }
    }
}

#[test]
fn a_worker_writes_a_haiku() {
    if !cfg!(feature = "worker-abi") {
        return;
    }
    let Some(model) = models::cached(models::SMOLLM2) else { return };
    let program = scratch().join("example-worker");
    let mut command = Command::new("c++");
    command.arg("-std=c++17").args(WARNINGS).arg("-I").arg(root().join("include"));
    command.arg(example("worker/worker.cpp")).arg("-o").arg(&program).arg("-L").arg(library_folder()).arg("-lkigo");
    succeed(command.args(SYSTEM_LIBRARIES));
    let mut command = Command::new(program);
    command.arg("--haiku").env("KIGO_DEVICE", "cpu");
    let output = run(command, &[&model], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("\"event\": \"token\"") && said.lines().any(|line| !line.starts_with('{')), "{said}");
}
