//! The program on the tiny model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama.gguf");
    Command::new(env!("CARGO_BIN_EXE_kigo-bench")).arg(model).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn measures_a_model_and_another_program() {
    let json = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench.json");
    let vs = "echo '| test | t/s |'; echo '| pp40 | 8.5 ± 0.1 |'; echo '| tg9 @ d30 | 4.0 |'; echo '| tg9 | 4.0 |'; echo 'build: a1 (2)'";
    let mut args = vec!["--device", "cpu", "--threads", "2", "--decode", "9", "--context", "30,20", "--prompt", "40,7"];
    args.extend(["--depth", "30", "--batch=1,3", "--reps", "2", "--vs", vs, "--json", json.to_str().unwrap()]);
    let output = bench(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    for words in [
        "vs: | pp40 | 8.5",
        "device cpu",
        ", 2 threads; 2 rounds",
        "tiny-llama.gguf: llama;",
        "| first load |",
        "| prefill of 40 |",
        "TFLOP/s, ",
        "| prefill of 7 after 30 |",
        "| first token, prompt of 30 |",
        "| decode of 9 after 20 |",
        "| batch of 3, decode of 9 after 30 |",
        "GB/s read, ",
        "prefill of 40: --vs has 8.5 tok/s (8.5 to 8.5); kigo is at ",
        "decode of 9 after 30: --vs has 4.0 tok/s",
        "--vs also measured Decode { n: 9, depth: 0 }: 4.0 tok/s",
    ] {
        assert!(table.contains(words), "no \"{words}\" in:\n{table}");
    }

    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    // Matrices of two layers in f32 (16,384 + 18,432 weights together a layer), and a head of 280 rows of 64.
    let layers = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64);
    assert_eq!(report["matrix_bytes"], 4 * (layers + 280 * 64));
    assert_eq!(report["memory_bytes"]["weights"], report["tensor_bytes"]);
    assert_eq!(report["type_bytes"]["F32"], report["tensor_bytes"]);
    assert_eq!(report["parameters"].as_u64().unwrap() * 4, report["tensor_bytes"].as_u64().unwrap());
    assert!(report["file_bytes"].as_u64() > report["tensor_bytes"].as_u64());
    for (key, value) in [("decode_path", "auto"), ("device", "cpu"), ("model", "tiny-llama.gguf")] {
        assert_eq!(report[key], value);
    }
    assert_eq!((report["rounds"].as_u64(), report["n_threads"].as_u64()), (Some(2), Some(2)));
    assert_eq!(report["date"].as_str().unwrap().len(), "2026-11-26".len());
    assert_eq!(report["arguments"].as_array().unwrap()[1..], args);
    let loads = report["loads"].as_array().unwrap();
    assert_eq!(loads.len(), 2);
    for load in loads {
        let seconds = |key: &str| load[key].as_f64().unwrap();
        let parts = ["header", "tokenizer", "device", "weights", "prepare"].map(seconds);
        assert!(parts.iter().all(|&part| (0.0..=seconds("seconds")).contains(&part)), "{load}");
        let bytes = report["tensor_bytes"].as_f64().unwrap();
        assert!((seconds("bytes_per_second") * seconds("seconds") / bytes - 1.0).abs() < 1e-9);
    }
    assert_eq!((&report["vs"]["command"], &report["vs"]["build"]), (&vs.into(), &"a1 (2)".into()));
    assert_eq!(report["vs"]["other"][0][1], 4.0);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows[0]["vs_tokens_per_second"], serde_json::json!([8.5, 8.5]));
    assert_eq!(rows[1]["vs_tokens_per_second"], serde_json::json!([]));
    let kinds: Vec<&str> = rows.iter().map(|row| row["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["prefill", "prefill", "turn", "turn", "decode", "decode", "batch", "batch"]);
    assert_eq!(rows[0]["flop"], (2 * (40 * layers + 280 * 64)) as f64);
    // Keys and values of 32 f32 each, in two layers, at the middle position and all before it.
    let cache = |position: f64| (position + 1.0) * (2 * 2 * 32 * 4) as f64;
    assert_eq!(rows[7]["step_bytes"], (4 * (layers + 280 * 64)) as f64 + 3.0 * cache(34.5));
    for row in rows {
        let seconds: Vec<f64> = row["seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        assert_eq!(seconds.len(), 2);
        assert!(seconds.iter().all(|&s| s > 0.0));
        let n = row["n_tokens"].as_f64().unwrap() * row["n_sequences"].as_f64().unwrap();
        let speed = row["tokens_per_second"].as_f64().unwrap();
        assert!((speed / ((n / seconds[0] + n / seconds[1]) / 2.0) - 1.0).abs() < 1e-9);
        let firsts = row["first_token_seconds"].as_array().unwrap().len();
        assert_eq!(firsts, if row["kind"] == "prefill" || row["kind"] == "turn" { 0 } else { 2 });
    }
    std::fs::remove_file(json).unwrap();
}

#[test]
fn says_what_is_wrong() {
    let device = bench(&["--device", "gpu"]);
    assert_eq!(device.status.code(), Some(1));
    assert!(text(&device.stderr).contains("\"gpu\""), "{}", text(&device.stderr));
    let usage = bench(&["--width", "3"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(text(&usage.stderr).contains("--width"));
    let context = bench(&["--device", "cpu", "--decode", "1", "--prompt", "0", "--reps", "1", "--vs", "exit 9"]);
    assert_eq!(context.status.code(), Some(1));
    assert!(text(&context.stderr).contains("exit 9"));
    assert!(device.stdout.is_empty() && usage.stdout.is_empty());
}
