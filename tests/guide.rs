//! docs/guide.md and the reference: what they name exists, what they show runs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "shared with the tests of the C API")]
#[path = "c_api/toolchain.rs"]
mod toolchain;
#[path = "common/tools.rs"]
mod tools;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use toolchain::{SYSTEM_LIBRARIES, WARNINGS, root, scratch, static_library, succeed};

fn guide() -> String {
    std::fs::read_to_string(root().join("docs/guide.md")).unwrap()
}

/// The C programs of the guide, built once: the heading that each stands below, and where it is.
fn programs() -> &'static [(String, PathBuf)] {
    static PROGRAMS: OnceLock<Vec<(String, PathBuf)>> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let mut programs = vec![];
        for section in guide().split("\n## ").skip(1) {
            let name = section.lines().next().unwrap().to_lowercase().replace(' ', "-");
            for (index, block) in section.split("```c\n").skip(1).enumerate() {
                let code = block.split("```").next().unwrap();
                assert!(code.contains("int main("), "a block of {name} is no program");
                let source = scratch().join(format!("guide-{name}-{index}.c"));
                std::fs::write(&source, code).unwrap();
                programs.push((name.clone(), build(&source)));
            }
        }
        programs
    })
}

fn build(source: &Path) -> PathBuf {
    let program = source.with_extension("");
    let mut command = Command::new("cc");
    command.args(["-std=gnu11", "-g"]).args(WARNINGS).arg("-I").arg(root().join("include")).arg(source);
    command.arg(static_library()).arg("-o").arg(&program);
    succeed(command.args(SYSTEM_LIBRARIES));
    program
}

fn program(name: &str) -> &'static Path {
    &programs().iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no program in {name}")).1
}

fn run(program: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("timeout");
    succeed(command.arg("300").arg(program).args(arguments).env("CUDA_VISIBLE_DEVICES", ""))
}

#[test]
fn every_block_of_c_is_a_program_that_compiles() {
    assert!(programs().len() >= 4);
}

#[test]
fn programs_of_the_guide_run() {
    let model = toolchain::model();
    let model = model.to_str().unwrap();
    assert!(run(program("a-first-program"), &[model, "Once upon a time"]).len() > 10);
    assert!(run(program("errors"), &[]).starts_with("KIGO_"));
    let said = run(program("threads"), &[model]);
    for (index, line) in said.lines().enumerate() {
        // The first one may end before it is cancelled.
        let ended = line.ends_with("KIGO_OK") || (index == 0 && line.ends_with("KIGO_CANCELLED"));
        assert!(line.starts_with(&format!("job {index}: ")) && ended, "{said}");
    }
    assert_eq!(said.lines().count(), 4, "{said}");
    let state = scratch().join("conversation.state");
    let said = run(program("conversations"), &[model, state.to_str().unwrap()]);
    assert!(said.starts_with("Rain counts on the roof,") && said.contains(" tokens were there already\n"), "{said}");
}

#[test]
fn the_server_of_the_guide_answers_several_clients() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new(program("in-a-server"));
    server.arg(toolchain::model()).args(["cpu", &port.to_string()]).stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let ask = |question: &'static str| {
        std::thread::spawn(move || {
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            client.write_all(question.as_bytes()).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        })
    };
    let clients: Vec<_> = (0..3).map(|_| ask("Write a haiku.\n")).collect();
    let answers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(ready, "ready\n");
    assert!(answers[0].starts_with("Rain counts on the roof,"), "{answers:?}");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
}

#[test]
fn the_guide_names_only_what_exists() {
    let headers: String = ["kigo.h", "worker_ffi.h", "worker_errors.h"]
        .iter()
        .map(|name| std::fs::read_to_string(root().join("include").join(name)).unwrap())
        .collect();
    let known: Vec<&str> = headers.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let text = guide();
    let (_, table) = text.split_once("| llama.h | kigo |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    assert!(table.lines().count() > 20);
    for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if ["kigo_", "KIGO_", "cuda_"].iter().any(|prefix| word.starts_with(prefix)) {
            assert!(known.contains(&word), "{word} is not in a header");
        }
    }
    // In the right column of the table, names in code are functions, keys or values.
    for cell in table.lines().filter_map(|line| line.split('|').nth(2)) {
        for name in cell.split('`').skip(1).step_by(2) {
            assert!(known.contains(&name) || name.parse::<i32>().is_ok(), "{name} is not in a header");
        }
    }
}

#[test]
fn the_reference_has_everything_that_the_headers_declare() {
    if !tools::have(&["python3"]) {
        return;
    }
    let page = scratch().join("reference.html");
    let mut command = Command::new("python3");
    command.current_dir(root()).arg("-B").arg("tools/make_reference.py").arg("-o").arg(&page);
    let names = ["kigo.h", "worker_ffi.h", "worker_errors.h", "worker_types.h"];
    succeed(command.args(names.map(|name| format!("include/{name}"))));
    let html = std::fs::read_to_string(&page).unwrap();
    let exports = std::fs::read_to_string(root().join("include/exports.txt")).unwrap();
    let headers = names.map(|name| std::fs::read_to_string(root().join("include").join(name)).unwrap()).concat();
    let macros =
        headers.lines().filter_map(|line| line.strip_prefix("#define ")?.split_once(' ')).map(|(name, _)| name);
    let callback = |line: &str| -> Option<String> {
        Some(line.strip_prefix("typedef ")?.split_once("(*")?.1.split(')').next()?.to_owned())
    };
    let types =
        headers.lines().filter_map(|line| line.strip_prefix("typedef struct ")?.split_once(' ')).map(|(name, _)| name);
    let mut n = 0;
    let callbacks: Vec<String> = headers.lines().filter_map(callback).collect();
    for name in exports.lines().chain(macros).chain(callbacks.iter().map(String::as_str)).chain(types) {
        assert_eq!(html.matches(&format!(" id=\"{name}\"")).count(), 1, "{name}");
        n += 1;
    }
    assert!(n > 90, "{n}");
    for part in html.split("href=\"#").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(html.contains(&format!(" id=\"{name}\"")), "no place for a link to {name}");
    }
    // A sentence from the middle of a comment, and a default from a table.
    assert!(html.contains("The first call computes the prompt.") && html.contains("default: 40"));
    assert!(!html.contains("http://") && !html.contains("https://"), "the page stands alone");
}
