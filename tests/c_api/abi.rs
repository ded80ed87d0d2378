//! What earlier versions promised. `make abi-snapshot`, a step of a release, writes what the headers declare to a folder
//! of tests/data/abi that has the name of the version, beside a program that was built with them. Later versions may
//! declare more; the program must run with all of them, as long as KIGO_ABI_VERSION stays the same.

use super::header::functions_of;
use super::toolchain::{build_plain, model, root, scratch, shared_library, succeed};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

const HEADERS: [&str; 4] = ["kigo.h", "worker_ffi.h", "worker_types.h", "worker_errors.h"];

/// What the headers declare, a line each: functions with the types of their parameters, callbacks, numbers and texts.
fn declared() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for name in HEADERS {
        let header = std::fs::read_to_string(root().join("include").join(name)).unwrap();
        for line in header.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let versions = words.get(1).is_some_and(|word| word.starts_with("KIGO_VERSION_"));
            match words.first() {
                Some(&"#define") if words.len() > 2 && !versions => lines.insert(words.join(" ")),
                Some(&"typedef") if line.contains("(*") => lines.insert(words.join(" ")),
                // A member of an enumeration.
                Some(word) if word.starts_with("CUDA_") => {
                    lines.insert(words.join(" ").trim_end_matches(',').to_owned())
                }
                _ => false,
            };
        }
    }
    for header in ["kigo.h", "worker_ffi.h"] {
        for function in functions_of(header) {
            let kinds: Vec<&str> = function.parameters.iter().map(|parameter| parameter.kind.as_str()).collect();
            lines.insert(format!("{} {}({})", function.result, function.name, kinds.join(", ")));
        }
    }
    lines
}

fn folder() -> PathBuf {
    root().join("tests/data/abi")
}

/// The folders of versions, that of this one written anew if `make abi-snapshot` asks for it.
fn versions() -> Vec<PathBuf> {
    static SNAPSHOT: Once = Once::new();
    if std::env::var_os("KIGO_ABI_SNAPSHOT").is_some() {
        SNAPSHOT.call_once(snapshot);
    }
    let entries = std::fs::read_dir(folder()).unwrap();
    let mut versions: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    versions.sort();
    assert!(!versions.is_empty());
    versions
}

fn snapshot() {
    let own = folder().join(env!("CARGO_PKG_VERSION"));
    std::fs::create_dir_all(&own).unwrap();
    let lines: Vec<String> = declared().into_iter().map(|line| line + "\n").collect();
    std::fs::write(own.join("declared.txt"), lines.concat()).unwrap();
    let mut command = Command::new("cc");
    command
        .args(["-std=c99", "-O2", "-s", "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-I"])
        .arg(root().join("include"));
    command.arg(root().join("examples/chat.c")).arg("-o").arg(own.join("chat-x86_64-linux"));
    succeed(command.arg("-L").arg(shared_library().parent().unwrap()).arg("-lkigo"));
}

#[cfg(feature = "worker-abi")]
#[test]
fn all_that_earlier_versions_declared_is_there() {
    let now = declared();
    for version in versions() {
        let then = std::fs::read_to_string(version.join("declared.txt")).unwrap();
        assert!(then.lines().count() > 100);
        let gone: Vec<&str> = then.lines().filter(|line| !now.contains(*line)).collect();
        assert!(gone.is_empty(), "{} declared what is gone or changed: {gone:#?}", version.display());
    }
}

/// What a chat says to two lines.
fn said(chat: &Path) -> String {
    let mut command = Command::new("timeout");
    command.arg("300").arg(chat).arg(model()).arg("cpu").env("LD_LIBRARY_PATH", shared_library().parent().unwrap());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"Write a haiku.\nWho are you?\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {}", chat.display(), output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]
#[test]
fn programs_of_earlier_versions_run() {
    use std::os::unix::fs::PermissionsExt;
    let today = said(&build_plain(&root().join("examples/chat.c"), "chat-today", super::toolchain::Link::Shared));
    assert!(today.starts_with("> Rain counts on the roof,"), "{today}");
    for version in versions() {
        let kept = std::fs::read(version.join("chat-x86_64-linux")).unwrap();
        let program = scratch().join(format!("chat-{}", version.file_name().unwrap().to_str().unwrap()));
        std::fs::write(&program, kept).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(said(&program), today, "{}", version.display());
    }
}
