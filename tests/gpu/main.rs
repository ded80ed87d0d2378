//! The GPU, judged by the CPU backend. `make gpu-test` and `run.sh test` of the bundle run these tests; elsewhere they
//! are compiled and ignored. Only the tests of the judge's own tools run everywhere.
//!
//! `KIGO_TEST_DEVICE` names the device (default: cuda).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/draws.rs"]
mod draws;
#[path = "../common/folder.rs"]
mod folder;
#[path = "../common/models.rs"]
mod models;
#[path = "../common/random_blocks.rs"]
mod random_blocks;
#[path = "../common/random_model.rs"]
mod random_model;
#[path = "../common/tiny.rs"]
mod tiny;

mod arch;
mod cancel;
mod determinism;
mod harness;
mod launches;
mod logits;
mod memory;
mod random_models;
mod sampling;
mod sanitize;
mod stages;
mod turns;

/// docs/gpu-validation.md names every test that needs a GPU, and no other.
#[test]
fn the_documentation_lists_these_tests() {
    let modules = [
        ("arch", include_str!("arch.rs")),
        ("cancel", include_str!("cancel.rs")),
        ("determinism", include_str!("determinism.rs")),
        ("logits", include_str!("logits.rs")),
        ("memory", include_str!("memory.rs")),
        ("random_models", include_str!("random_models.rs")),
        ("sampling", include_str!("sampling.rs")),
        ("sanitize", include_str!("sanitize.rs")),
        ("stages::attention", include_str!("stages/attention.rs")),
        ("stages::experts", include_str!("stages/experts.rs")),
        ("stages::heads", include_str!("stages/heads.rs")),
        ("stages::products", include_str!("stages/products.rs")),
        ("stages::rows", include_str!("stages/rows.rs")),
        ("turns", include_str!("turns.rs")),
    ];
    let tests = modules.iter().flat_map(|(module, source)| {
        let ignored = source.split("#[ignore = \"needs a GPU\"]\nfn ").skip(1);
        ignored.map(move |rest| format!("{module}::{}", rest.split('(').next().unwrap()))
    });
    let mut tests: Vec<String> = tests.collect();
    let quoted = include_str!("../../docs/gpu-validation.md").split('`').skip(1).step_by(2);
    let whole =
        |name: &&str| modules.iter().any(|(module, _)| name.strip_prefix(module).is_some_and(|rest| rest.len() > 2));
    let mut listed: Vec<String> = quoted.filter(whole).map(String::from).collect();
    tests.sort();
    listed.sort();
    listed.dedup();
    assert_eq!(listed, tests);
}
