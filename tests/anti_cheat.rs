//! The proof that text is generated: by a C program, through the shared library, from the weights of a real file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "common/folder.rs"]
mod folder;
#[path = "common/models.rs"]
mod models;
#[allow(dead_code, reason = "shared with the tests of the C API")]
#[path = "c_api/toolchain.rs"]
mod toolchain;

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use kigo::gguf::Gguf;

const MAX_ATTEMPTS: u64 = 32;
const MAX_TOKENS: &str = "48";

/// What one run of `generate.c` printed.
#[derive(Debug)]
struct Generation {
    device: String,
    weight_bytes: u64,
    peak_bytes: u64,
    text: String,
}

fn run(program: &Path, model: &Path, prompt: &str, seed: u64) -> Output {
    let mut command = Command::new("timeout");
    command.arg("300").arg(program).arg(model).args(["user", prompt, &seed.to_string(), MAX_TOKENS]);
    command.output().unwrap()
}

fn generate(program: &Path, model: &Path, prompt: &str, seed: u64) -> Generation {
    let output = run(program, model, prompt, seed);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let mut parts = printed.splitn(4, '\n');
    let mut fact = |name: &str| parts.next().unwrap().strip_prefix(name).unwrap().trim().to_string();
    let (device, weight_bytes) = (fact("device"), fact("weight_bytes").parse().unwrap());
    let peak_bytes = fact("peak_bytes").parse().unwrap();
    Generation { device, weight_bytes, peak_bytes, text: parts.next().unwrap().to_string() }
}

fn minute_in_words(minute: u64) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 4] = ["twenty", "thirty", "forty", "fifty"];
    match (minute, minute % 10) {
        (0..20, _) => SMALL[minute as usize].into(),
        (_, 0) => TENS[minute as usize / 10 - 2].into(),
        (_, one) => format!("{}-{}", TENS[minute as usize / 10 - 2], SMALL[one as usize]),
    }
}

/// Whether `text` holds `word` as a whole word, "forty two" for "forty-two" included.
fn contains_word(text: &str, word: &str) -> bool {
    let text = text.to_lowercase().replace(word, &word.replace('-', " "));
    let words: Vec<&str> = text.split(|c: char| !c.is_alphabetic() && c != '-').filter(|w| !w.is_empty()).collect();
    let wanted: Vec<&str> = word.split('-').collect();
    words.windows(wanted.len()).any(|window| window == wanted)
}

/// A copy of the model in which every tensor of one layer is zero.
fn without_layer(model: &Path, layer: usize, copy: &Path) {
    std::fs::copy(model, copy).unwrap();
    let gguf = Gguf::open(model).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(copy).unwrap();
    let tensors: Vec<_> = gguf.tensors().iter().filter(|t| t.name.starts_with(&format!("blk.{layer}."))).collect();
    assert_eq!(tensors.len(), 9);
    for tensor in tensors {
        file.seek(SeekFrom::Start(tensor.offset)).unwrap();
        file.write_all(&vec![0; tensor.n_bytes as usize]).unwrap();
    }
}

/// The program and the library that it is linked with: built now, or those of the bundle.
fn program() -> (PathBuf, PathBuf) {
    if let Some(bundle) = models::bundle() {
        return (bundle.join("bin/generate"), bundle.join("lib/libkigo.so.0"));
    }
    let source = toolchain::root().join("tests/c_api/generate.c");
    (toolchain::build(&source, "generate", toolchain::Link::Shared), toolchain::shared_library().into())
}

/// The minutes to write about: those of `KIGO_TEST_MINUTES`, with commas, or the current one.
fn minutes() -> Vec<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60 % 60;
    let given = std::env::var("KIGO_TEST_MINUTES");
    given.map_or(vec![now], |given| given.split(',').map(|minute| minute.parse().unwrap()).collect())
}

#[test]
fn words_of_minutes() {
    assert_eq!(["zero", "nineteen", "twenty", "forty-two"], [0, 19, 20, 42].map(minute_in_words)[..]);
    assert!(contains_word("It is Forty-two past", "forty-two") && contains_word("forty two", "forty-two"));
    assert!(!contains_word("sixteen", "six") && !contains_word("forty-six", "six") && contains_word("Six!", "six"));
}

#[test]
fn haiku_generation_anti_cheat() {
    let Some(model) = models::cached(models::SMOLLM2) else { return };
    let (program, library) = program();
    for minute in minutes() {
        check(&program, &library, &model, minute);
    }
}

fn check(program: &Path, library: &Path, model: &Path, minute: u64) {
    let word = minute_in_words(minute);
    let mut nonce = [0; 8];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut nonce).unwrap();
    let nonce = u64::from_le_bytes(nonce) >> 16;
    let prompt = format!(
        "Write a haiku of three short lines about the number {word}. Each line contains the word \"{word}\". \
         Its title is {nonce:x}."
    );

    let mut found = None;
    for seed in nonce..nonce + MAX_ATTEMPTS {
        let haiku = generate(program, model, &prompt, seed);
        println!(
            "minute {word}, nonce {nonce:x}, seed {seed}, {} bytes of weights:\n{}\n",
            haiku.weight_bytes, haiku.text
        );
        if contains_word(&haiku.text, &word) && haiku.text.lines().any(|line| line.trim().len() >= 12) {
            found = Some((seed, haiku));
            break;
        }
    }
    let (seed, haiku) = found.unwrap_or_else(|| panic!("none of {MAX_ATTEMPTS} attempts contains {word}"));
    println!("device {}, {} bytes of weights", haiku.device, haiku.weight_bytes);
    let gguf = Gguf::open(model).unwrap();
    assert_eq!(haiku.weight_bytes, gguf.tensors().iter().map(|t| t.n_bytes).sum::<u64>(), "every weight was read");

    let file_bytes = std::fs::metadata(model).unwrap().len();
    println!(
        "peak memory {} bytes, {:.2} times the file",
        haiku.peak_bytes,
        haiku.peak_bytes as f64 / file_bytes as f64
    );
    // With a GPU, its driver has memory of its own in the process.
    assert!(haiku.device != "cpu" || haiku.peak_bytes as f64 <= 1.3 * file_bytes as f64);
    if let Ok(device) = std::env::var("KIGO_TEST_DEVICE") {
        assert_eq!(haiku.device == "cpu", device == "cpu", "asked for {device}, got {}", haiku.device);
    }

    assert_eq!(generate(program, model, &prompt, seed).text, haiku.text, "the same seed gives the same haiku");
    assert_ne!(generate(program, model, &prompt, seed + 1).text, haiku.text, "another seed gives another");

    let folder = folder::Folder::new();
    let crippled = folder.path("without-layer-7.gguf");
    without_layer(model, 7, &crippled);
    assert_ne!(generate(program, &crippled, &prompt, seed).text, haiku.text, "the weights make the text");

    let truncated = folder.path("truncated.gguf");
    std::fs::copy(model, &truncated).unwrap();
    std::fs::OpenOptions::new().write(true).open(&truncated).unwrap().set_len(file_bytes - 1).unwrap();
    let output = run(program, &truncated, &prompt, seed);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.starts_with("KIGO_TRUNCATED"), "{message}");

    let library = std::fs::read(library).unwrap();
    let lines: Vec<&str> = haiku.text.lines().map(str::trim).filter(|line| line.len() >= 12).collect();
    assert!(!lines.is_empty(), "no line is long enough to look for: {}", haiku.text);
    for line in lines {
        let inside = library.windows(line.len()).any(|bytes| bytes.eq_ignore_ascii_case(line.as_bytes()));
        assert!(!inside, "the library contains \"{line}\"");
    }
}
