//! The program on the tiny model, and on files that kigo cannot run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kigo::gguf::{Gguf, Value, Writer};
use serde_json::Value as Json;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama-q8_0.gguf")
}

fn inspect(model: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kigo-inspect")).arg(model).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn shows_a_table() {
    let output = inspect(&tiny(), &["--device", "cpu", "--n-ctx", "100"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for words in [
        "architecture    llama\n",
        "n_layer         2\n",
        "n_vocab         280\n",
        "chat templates  default\n",
        "on cpu, with n_ctx 100 and n_batch 128\n",
        "(512 B a token)\n",
        "role",
        "attn_q.weight",
        "Q8_0 2 (8.7 kB)\n",
    ] {
        assert!(table.contains(words), "no \"{words}\" in:\n{table}");
    }
}

#[test]
fn prints_json_for_a_gpu_that_is_not_there() {
    let args: &[&str] =
        if cfg!(feature = "cuda") { &["--json", "--device=cuda:7"] } else { &["--json", "--device=cpu"] };
    let output = inspect(&tiny(), args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let info: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["sizes"]["n_embd"], 64);
    assert_eq!(info["memory"]["device"], args[1]["--device=".len()..]);
    let parts = ["weights", "cache", "workspace"].map(|part| info["memory"][part].as_u64().unwrap());
    assert!(parts.iter().all(|&bytes| bytes > 0));
    assert_eq!(info["memory"]["total"], parts.iter().sum::<u64>());
}

/// A file of an architecture that kigo lacks still has facts.
#[test]
fn says_why_a_model_cannot_run() {
    let gguf = Gguf::open(&tiny()).unwrap();
    let mut writer = Writer::new();
    for (key, value) in gguf.metadata().iter() {
        let value = if key == "general.architecture" { Value::from("sandcastle") } else { value.clone() };
        let key = key.replace("llama.", "sandcastle.");
        writer = writer.pair(key, value);
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sandcastle.gguf");
    std::fs::write(&path, writer.to_bytes()).unwrap();
    let output = inspect(&path, &["--device", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("sandcastle"), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(table.contains("n_layer         2\n") && table.contains("eos"), "{table}");
    std::fs::remove_file(&path).unwrap();

    let missing = inspect(Path::new("/no/such.gguf"), &[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.stdout.is_empty() && text(&missing.stderr).contains("/no/such.gguf"));
    let usage = inspect(&tiny(), &["--depth"]);
    assert_eq!(usage.status.code(), Some(2));
    let device = inspect(&tiny(), &["--device", "gpu"]);
    assert_eq!(device.status.code(), Some(1));
    assert!(text(&device.stderr).contains("device"), "{}", text(&device.stderr));
}
