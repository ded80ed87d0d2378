//! The C programs under valgrind: no access to memory that is not theirs or was never written, and no leak.

use super::toolchain::{Link, build_plain, model, root, scratch, succeed};
use std::path::Path;
use std::process::Command;

#[path = "../common/tools.rs"]
mod tools;

/// What valgrind returns when it has found something.
const FOUND: &str = "97";

/// Runs a program, which does less for the argument before the model.
fn valgrind(program: &Path, leaks: &str) -> String {
    let mut command = Command::new("timeout");
    command.args(["300", "valgrind", "--quiet", "--fair-sched=yes", leaks]);
    command.args(["--errors-for-leak-kinds=definite,indirect", "--show-leak-kinds=definite,indirect"]);
    command.arg(format!("--error-exitcode={FOUND}")).arg(program).arg("less").arg(model());
    succeed(&mut command)
}

fn passes(name: &str) {
    passes_with(name, "--leak-check=full");
}

fn passes_with(name: &str, leaks: &str) {
    if !tools::have(&["valgrind"]) {
        return;
    }
    let source = root().join(format!("tests/c_api/{name}.c"));
    valgrind(&build_plain(&source, &format!("{name}-valgrind"), Link::Static), leaks);
}

macro_rules! programs {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            passes(stringify!($name));
        }
    )*};
}

programs! { arguments chat churn handles library loads log races sampling stream threads tokens turns }

/// The threads of the parent are lost in its children, with what they held.
#[test]
fn fork() {
    passes_with("fork", "--leak-check=no");
}

/// Valgrind finds what is wrong: else the other tests would show nothing.
#[test]
fn it_finds_what_it_should() {
    if !tools::have(&["valgrind"]) {
        return;
    }
    for (name, body) in [
        ("lost", "(void)malloc(7); return 0;"),
        ("unset", "char *p = malloc(7); int n = p[3]; free(p); return n > 3 ? 1 : 0;"),
    ] {
        let source = scratch().join(format!("{name}.c"));
        std::fs::write(&source, format!("#include <stdlib.h>\nint main(void) {{ {body} }}\n")).unwrap();
        let program = scratch().join(name);
        succeed(Command::new("cc").args(["-g", "-O0"]).arg(&source).arg("-o").arg(&program));
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite"]);
        let status = command.arg(format!("--error-exitcode={FOUND}")).arg(&program).output().unwrap().status;
        assert_eq!(status.code(), FOUND.parse().ok(), "{name}");
    }
}
