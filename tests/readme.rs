//! README.md says what the library has.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use kigo::Status;
use kigo::model::arch::ARCHITECTURES;
use kigo::quant::QuantType;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

/// The second cell of the row of a table that begins with `name`.
fn row(name: &str) -> String {
    let start = format!("| {name} | ");
    let text = readme();
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no row {name}")).trim_end_matches(" |").to_owned()
}

#[test]
fn tensor_types_are_those_of_the_table() {
    let mut listed: Vec<String> = row("Tensor types").split(", ").map(str::to_owned).collect();
    let mut known: Vec<&str> = QuantType::ALL.iter().map(|kind| kind.name()).collect();
    listed.sort();
    known.sort_unstable();
    assert_eq!(listed, known);
}

#[test]
fn architectures_are_those_of_the_table() {
    let cell = row("Architectures");
    for architecture in ARCHITECTURES {
        assert!(cell.contains(&format!("`{}`", architecture.name)), "{} is missing", architecture.name);
    }
    assert_eq!(cell.matches('`').count(), 2 * ARCHITECTURES.len());
}

#[test]
fn statuses_are_those_of_the_table() {
    let text = readme();
    let (_, section) = text.split_once("## Statuses").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let listed: Vec<&str> = section.split('`').skip(1).step_by(2).collect();
    let mut known: Vec<Status> = Status::ALL.iter().copied().filter(|status| *status != Status::Ok).collect();
    known.sort_by_key(|status| -(*status as i32));
    assert_eq!(listed, known.iter().map(|status| status.name()).collect::<Vec<_>>());
}

#[test]
fn options_are_those_of_the_header() {
    let header = std::fs::read_to_string(root().join("include/kigo.h")).unwrap();
    let (_, section) = header.split_once(" * Options\n").unwrap();
    let section = section.split("*/").next().unwrap();
    let key = |line| Some(str::strip_prefix(line, " *   \"")?.split_once("\": ")?.0);
    let known: Vec<&str> = section.lines().filter_map(key).collect();
    let text = readme();
    let (_, table) = text.split_once("| Key | Read by |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let listed: Vec<&str> = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2)).collect();
    assert_eq!(listed, known);
}

#[test]
fn numbers_that_options_have_unasked_are_those_of_the_header() {
    let header = std::fs::read_to_string(root().join("include/kigo.h")).unwrap();
    let text = readme();
    let (_, table) = text.split_once("| Key | Read by |").unwrap();
    let mut compared = 0;
    for line in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').collect();
        let keys = cells[1].split('`').skip(1).step_by(2);
        for (key, listed) in keys.zip(cells[3].split(',').map(str::trim)) {
            let (_, option) = header.split_once(&format!(" *   \"{key}\": ")).unwrap();
            let words = option.split("default:").nth(1).unwrap().trim_start_matches([' ', '*', '\n']);
            let default = words.split_whitespace().next().unwrap();
            if default.parse::<f64>().is_ok() {
                assert_eq!(listed, default, "{key}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 8, "{compared}");
}

#[test]
fn program_compiles() {
    let text = readme();
    let program = text.split("```c\n").nth(1).unwrap().split("```").next().unwrap();
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme.c");
    std::fs::write(&source, program).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I"]).arg(root().join("include"));
    let output = compiler.arg(&source).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
