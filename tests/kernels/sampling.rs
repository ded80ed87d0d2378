//! The samplers' kernels, on an emulator of a GPU's blocks (`emulator/common.cuh`): the tokens of the CPU's sampler.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kigo::backend::cuda::params::{KigoSampler, bytes_of};
use kigo::backend::cuda::sample::state;
use kigo::sampler::{Sampler, SamplingParams};

use super::draws::{choices, logits};
use super::random_blocks::Random;

const N_CTX: usize = 64;
const N_STEPS: usize = 4;

/// `sample.cpp`, compiled in a folder of its own, where the kernels find the emulator's `common.cuh`.
fn compiled(folder: &str, option: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    let kernels = root.join("kernels");
    let names = std::fs::read_dir(&kernels).unwrap().map(|entry| entry.unwrap().file_name());
    let wanted = names.filter(|name| name == "launch.h" || name.to_string_lossy().starts_with("sample"));
    for name in wanted {
        std::fs::copy(kernels.join(&name), folder.join(&name)).unwrap();
    }
    std::fs::copy(root.join("tests/kernels/emulator/common.cuh"), folder.join("common.cuh")).unwrap();
    // Fibers change stacks in a way that fortified sources take for an error.
    let options = ["-std=c++17", "-O2", "-g", "-ffp-contract=off", "-U_FORTIFY_SOURCE", option, "-I"];
    let options = [&options.map(AsRef::as_ref)[..], &[folder.as_os_str()]].concat();
    super::compile(&root.join("tests/kernels/sample.cpp"), &folder.join("sample"), &options)
}

fn program() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| compiled("sample", "-Wno-unknown-pragmas"))
}

/// Draws with `n` rows at a time from `n_vocab` logits, with all settings.
fn check(program: &Path, n_vocab: usize, n: usize, seed: u64) {
    let mut random = Random(seed);
    for group in choices().chunks(n) {
        let n = group.len();
        let mut sequences = Vec::new();
        let (mut input, mut windows) = (Vec::new(), Vec::new());
        for params in group {
            let params = SamplingParams { seed: random.next(), ..params.clone() };
            let tokens: Vec<u32> = (0..9).map(|_| random.next() as u32 % n_vocab as u32).collect();
            let mut state: KigoSampler = state(&params, n_vocab as u32, N_CTX, 0, tokens.len());
            state.window = u64::from(state.window_len > 0);
            input.extend_from_slice(bytes_of(&state));
            let window = (0..state.window_len as usize).map(|i| tokens.get(i).copied().unwrap_or(0));
            windows.extend(window.flat_map(u32::to_le_bytes));
            sequences.push((Sampler::new(params).unwrap(), tokens));
        }
        input.append(&mut windows);
        let rows: Vec<Vec<f32>> = (0..N_STEPS * n).map(|i| logits(n_vocab, (i / n + i % n) % 4, &mut random)).collect();
        input.extend(rows.iter().flatten().flat_map(|x| x.to_le_bytes()));
        let sizes = [n_vocab, n, N_STEPS, random.next() as u32 as usize >> 1];
        let output = super::run(program, sizes.map(|size| size.to_string()), &input);
        let found = output.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word) as u32);
        for (i, (found, logits)) in found.zip(&rows).enumerate() {
            let (judge, tokens) = &mut sequences[i % n];
            let expected = judge.sample(logits, tokens).unwrap();
            assert_eq!(found, expected, "{n_vocab} logits, row {} of {n}, step {}: {:?}", i % n, i / n, group[i % n]);
            tokens.push(found);
        }
        assert_eq!(output.len(), N_STEPS * n * 8);
    }
}

#[test]
fn few_logits_are_one_slice() {
    check(program(), 50, 1, 1);
    check(program(), 1001, 4, 2);
}

#[test]
fn blocks_share_many_logits() {
    check(program(), 5003, 3, 3);
    check(program(), 33_000, 2, 4);
}

/// What ThreadSanitizer reports ends the program with a failure.
#[test]
fn a_barrier_stands_between_accesses_of_different_threads() {
    check(&compiled("sample-races", "-fsanitize=thread"), 2501, 4, 5);
}
