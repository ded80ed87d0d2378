//! Damage all over a model: it loads and runs, or is refused.

use super::*;

/// Every third byte of the metadata, and every thousandth of the weights, in four ways.
#[test]
fn a_damaged_model_runs_or_is_refused() {
    let bytes = std::fs::read(models::data("tiny-llama-q8_0.gguf")).unwrap();
    model_bytes::load_and_run(&bytes).unwrap();
    let gguf = kigo::gguf::Gguf::open(&models::data("tiny-llama-q8_0.gguf")).unwrap();
    let data = gguf.tensors().iter().map(|t| t.offset as usize).min().unwrap();
    let (mut ran, mut refused) = (0, 0);
    for at in (0..data).step_by(3).chain((data..bytes.len()).step_by(1000)) {
        for value in [bytes[at] ^ 0xff, 0, 0xff, bytes[at] ^ 1] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            match model_bytes::load_and_run(&damaged) {
                Ok(()) => ran += 1,
                Err(error) => {
                    assert_ne!(error.status(), Status::Internal, "byte {at} = {value}: {error}");
                    refused += 1;
                }
            }
        }
    }
    println!("{ran} ran, {refused} were refused");
    assert!(ran > 100 && refused > 100);
}

#[test]
fn the_fuzz_corpus_of_models_runs_or_is_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/model");
    let mut n = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let outcome = model_bytes::load_and_run(&std::fs::read(&path).unwrap());
        // Seeds that are named so run, or nothing behind the header would be tried.
        if path.ends_with("gemma3") || path.ends_with("gpt-oss") {
            outcome.unwrap();
        }
        n += 1;
    }
    assert!(n > 0);
}
