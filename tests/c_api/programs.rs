//! C programs that use and misuse the library. Each is a file beside this one, gets the path of a model, and says
//! what went wrong if something did.

use super::toolchain::{Link, SANITIZE, build, build_cpp, compile, model, root, run, sanitizes};
use super::toolchain::{scratch, shared_library, succeed};

fn source(name: &str) -> std::path::PathBuf {
    root().join("tests/c_api").join(name)
}

fn passes(name: &str) {
    let program = build(&source(&format!("{name}.c")), name, Link::Static);
    assert_eq!(run(&program, &[&model()]), "", "the library prints nothing");
}

#[test]
fn c05_c08_c09_stream() {
    passes("stream");
}

/// The address sanitizer is really in the programs, and looks for leaks: else the tests above would show less.
#[test]
fn the_sanitizer_finds_what_it_should() {
    if !sanitizes() {
        return;
    }
    for (name, body) in [
        ("leaked", "void *volatile p = malloc(7); p = NULL; return p != NULL;"),
        ("freed", "char *p = malloc(7); char *volatile q = p; free(p); return q[0] == 3;"),
    ] {
        let source = scratch().join(format!("{name}.c"));
        std::fs::write(&source, format!("#include <stdlib.h>\nint main(void) {{ {body} }}\n")).unwrap();
        let mut command = compile("cc", "c99");
        let program = scratch().join(name);
        succeed(command.args(["-g", SANITIZE, "-Wno-use-after-free"]).arg(&source).arg("-o").arg(&program));
        let output = std::process::Command::new(&program).output().unwrap();
        assert!(!output.status.success(), "{name}");
    }
}

#[test]
fn stream_with_the_shared_library() {
    run(&build(&source("stream.c"), "stream-shared", Link::Shared), &[&model()]);
}

#[test]
fn c02_c03_c04_c06_c07_handles() {
    passes("handles");
}

#[test]
fn c12_c13_c14_c15_c17_arguments() {
    passes("arguments");
}

#[test]
fn t13_t16_sampling() {
    passes("sampling");
}

#[test]
fn chats_and_facts() {
    passes("chat");
}

#[test]
fn tokens_and_metadata() {
    passes("tokens");
}

#[test]
fn the_log() {
    passes("log");
}

#[test]
fn versions_options_and_devices() {
    passes("library");
}

#[test]
fn c08_c15_x02_turns() {
    passes("turns");
}

#[test]
fn c20_churn() {
    passes("churn");
}

#[test]
fn x01_x02_x03_x04_x05_threads() {
    passes("threads");
}

#[test]
fn x06_x07_x09_x10_races() {
    passes("races");
}

#[test]
fn x03_x08_loads() {
    passes("loads");
}

#[test]
fn c22_fork() {
    passes("fork");
}

#[test]
fn c21_reload() {
    run(&build(&source("reload.c"), "reload", Link::None), &[&model(), shared_library()]);
}

/// What the bench of starts prints has each part, and they are parts of the whole.
#[test]
fn starts_are_told_by_part() {
    let program = build(&root().join("benches/start.c"), "start", Link::None);
    let told = run(&program, &[shared_library(), &model(), "cpu".as_ref()]);
    let of = |part: &str| -> f64 {
        let behind = told.split_once(part).unwrap_or_else(|| panic!("no {part:?} in {told}")).1;
        behind.trim_start().split([' ', ',', '(', ')', '\n']).next().unwrap().parse().unwrap()
    };
    let sum = of(": open") + of(", load") + of("prompt and token");
    assert!((sum - of("to the first token")).abs() < 1.0, "{told}");
    for part in ["(header", ", tokenizer", ", device", ", weights", ", prepare"] {
        assert!(of(part) <= of(", load") + 0.1, "{part} of {told}");
    }
}

#[test]
fn owners_of_cpp() {
    for standard in ["c++11", "c++20"] {
        let program = build_cpp(&source("wrapper.cpp"), &format!("wrapper-{standard}"), standard);
        assert_eq!(run(&program, &[&model()]), "", "the library prints nothing");
    }
}
