//! What of the kernels runs on the host: matrices packed and unpacked as plain C++ (`tests/kernels/layout.cpp`), and the samplers
//! (`tests/kernels/sample.cpp`).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use kigo::quant::QuantType;

#[cfg(feature = "cuda")]
#[path = "common/draws.rs"]
mod draws;
#[cfg(feature = "cuda")]
#[path = "common/random_blocks.rs"]
mod random_blocks;
#[cfg(feature = "cuda")]
#[path = "kernels/sampling.rs"]
mod sampling;

/// Rows of a tile.
const TILE: usize = 16;

/// `tests/kernels/layout.cpp`, compiled once.
fn layout() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layout");
        let kernels = root.join("kernels");
        // The weights are compared with those of Rust, which never contracts.
        let options = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-I"];
        let options = [&options.map(AsRef::as_ref)[..], &[kernels.as_os_str()]].concat();
        compile(&root.join("tests/kernels/layout.cpp"), &program, &options)
    })
}

fn compile(source: &Path, program: &Path, options: &[&OsStr]) -> PathBuf {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut command = Command::new(&compiler);
    command.args(options).arg(source).arg("-o").arg(program);
    let output = command.output().unwrap_or_else(|error| {
        panic!("{compiler}: {error}; install a C++ compiler (on Debian: apt install g++) or name yours with CXX")
    });
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    program.to_owned()
}

/// What a program writes that reads `input`.
fn run(program: &Path, arguments: impl IntoIterator<Item = String>, input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let written = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    written.unwrap();
    output.stdout
}

/// A matrix that went through records.
#[cfg_attr(
    not(feature = "cuda"),
    expect(dead_code, reason = "what the backend says of records is compared only there")
)]
struct Unpacked {
    record_k: usize,
    record_bytes: usize,
    /// The largest number that scales come from, and what weights are times what stands for them.
    top: f32,
    scale: f32,
    /// Columns with those that fill the last record.
    stride: usize,
    /// Rows, with those that fill the last tile, of `stride` weights.
    weights: Vec<f32>,
}

fn unpack(kind: QuantType, n_rows: usize, n_columns: usize, blocks: Vec<u8>) -> Unpacked {
    let name = kind.name();
    let output = run(layout(), [name.to_string(), n_rows.to_string(), n_columns.to_string()], &blocks);
    let words: Vec<u32> = output.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let [record_k, record_bytes] = [words[0] as usize, words[1] as usize];
    let stride = n_columns.next_multiple_of(record_k);
    let [top, scale] = [f32::from_bits(words[2]), f32::from_bits(words[3])];
    let weights: Vec<f32> = words[4..].iter().map(|&bits| f32::from_bits(bits)).collect();
    assert_eq!(weights.len(), n_rows.next_multiple_of(TILE) * stride, "{name}");
    Unpacked { record_k, record_bytes, top, scale, stride, weights }
}

/// Where the halves in a block are.
fn halves(kind: QuantType) -> &'static [usize] {
    match kind {
        QuantType::F32 | QuantType::MXFP4 => &[],
        QuantType::F16 | QuantType::Q4_0 | QuantType::Q5_0 | QuantType::Q8_0 => &[0],
        QuantType::IQ4_NL | QuantType::IQ4_XS => &[0],
        QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4_K | QuantType::Q5_K => &[0, 2],
        QuantType::Q2_K => &[80, 82],
        QuantType::Q3_K => &[108],
        QuantType::Q6_K => &[208],
        QuantType::BF16 => &[],
    }
}

/// `n` blocks of any bits that stand for finite numbers.
fn random_blocks(kind: QuantType, n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut byte = || {
        // The multiplier is Knuth's, for MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut blocks: Vec<u8> = (0..n * kind.block_bytes()).map(|_| byte()).collect();
    for block in blocks.chunks_exact_mut(kind.block_bytes()) {
        for &at in halves(kind) {
            if block[at + 1] & 0x7c == 0x7c {
                block[at + 1] ^= 0x40;
            }
        }
        // An exponent without its highest bit is not that of infinities.
        match kind {
            QuantType::BF16 if block[1] & 0x7f == 0x7f => block[1] ^= 0x40,
            QuantType::F32 if block[3] & 0x7f == 0x7f => block[3] ^= 0x40,
            // Powers of two that twice and half of a weight stay in the range of.
            QuantType::MXFP4 => block[0] = 64 + block[0] % 128,
            _ => {}
        }
    }
    blocks
}

/// Numbers of columns: one record, a part of one, several and a part.
fn columns(kind: QuantType) -> [usize; 4] {
    match kind.block_len() {
        1 => [64, 1, 37, 199],
        32 => [64, 32, 96, 320],
        len => [len, 2 * len, 3 * len, 5 * len],
    }
}

/// How far a weight may be from that of the file: a multiple of what halves round, for the largest weight and the span of 16
/// neighbours, which share a scale, and of the least half.
fn tolerance(kind: QuantType, neighbours: &[f32], scale: f32) -> f32 {
    if matches!(kind, QuantType::F32 | QuantType::F16 | QuantType::BF16) {
        return 0.0;
    }
    let (least, most) = neighbours.iter().fold((0.0_f32, 0.0_f32), |(least, most), &w| (least.min(w), most.max(w)));
    (most - least) * 2.0_f32.powi(-9) + scale * 2.0_f32.powi(-23)
}

#[test]
fn records_hold_the_weights_of_the_blocks() {
    for (&kind, seed) in QuantType::ALL.iter().zip(1..) {
        for (n_columns, n_rows) in
            columns(kind).into_iter().flat_map(|columns| [(columns, 16), (columns, 19), (columns, 1)])
        {
            let name = format!("{} {n_rows} x {n_columns}", kind.name());
            let blocks = random_blocks(kind, n_rows * n_columns / kind.block_len(), seed);
            let mut expected = vec![f32::NAN; n_rows * n_columns];
            kind.dequantize(&blocks, &mut expected);
            assert!(expected.iter().any(|weight| weight.is_normal()), "{name}");

            let found = unpack(kind, n_rows, n_columns, blocks);
            for (i, &weight) in found.weights.iter().enumerate() {
                let (row, column) = (i / found.stride, i % found.stride);
                let inside = row < n_rows && column < n_columns;
                let at = row * n_columns + column;
                let (expected, within) = if inside {
                    let first = at - column % 16;
                    let neighbours = &expected[first..expected.len().min(first + 16)];
                    (expected[at], tolerance(kind, neighbours, found.scale))
                } else {
                    (0.0, 0.0)
                };
                assert!(
                    (weight - expected).abs() <= within,
                    "{name}, row {row}, column {column}: expected {expected:e} within {within:e}, found {weight:e}"
                );
            }
        }
    }
}

/// Matrices as models have them, whose scales differ little.
#[test]
fn weights_are_rounded_like_halves() {
    for (&kind, seed) in QuantType::ALL.iter().zip(1..) {
        let (n_rows, n_columns) = (32, 512);
        let mut blocks = random_blocks(kind, n_rows * n_columns / kind.block_len(), seed);
        for block in blocks.chunks_exact_mut(kind.block_bytes()) {
            match kind {
                QuantType::F32 | QuantType::F16 | QuantType::BF16 => {}
                QuantType::MXFP4 => block[0] = 120 + block[0] % 8,
                // From 2^-9 to 2^-6.
                _ => halves(kind).iter().for_each(|at| block[at + 1] = 6 << 2 | block[at + 1] & 0x8f),
            }
        }
        let mut expected = vec![f32::NAN; n_rows * n_columns];
        kind.dequantize(&blocks, &mut expected);
        let found = unpack(kind, n_rows, n_columns, blocks);
        assert_eq!(found.weights.len(), expected.len());
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = expected.iter().zip(&found.weights).map(|(a, b)| square(a - b)).sum();
        let relative = error / expected.iter().map(|&x| square(x)).sum::<f64>();
        assert!(relative <= 5e-7, "{}: squared error {relative:.1e}", kind.name());
    }
}

/// The host decides by how much scales are shifted; what it knows of the types is what the kernels say.
#[cfg(feature = "cuda")]
#[test]
fn scales_are_shifted_as_far_as_the_host_thinks() {
    use kigo::backend::cuda::layout::scale_shift;
    for (&kind, seed) in QuantType::ALL.iter().zip(1..) {
        let n_blocks = TILE * 256.max(kind.block_len()) / kind.block_len();
        let blocks = random_blocks(kind, n_blocks, seed);
        let found = unpack(kind, TILE, 256.max(kind.block_len()), blocks);
        assert_eq!(scale_shift(kind, found.top).1, found.scale, "{}, largest {:e}", kind.name(), found.top);
        assert_eq!(scale_shift(kind, 0.0), (0, 1.0), "{}: a matrix of zeros", kind.name());
    }
    assert_eq!(scale_shift(QuantType::Q4_0, f32::MIN_POSITIVE).0, 15 + 126 - 1);
    assert_eq!(scale_shift(QuantType::MXFP4, 2.0_f32.powi(-128)).0, 15 + 128 - 1, "a subnormal");
    assert_eq!(scale_shift(QuantType::Q8_0, f32::INFINITY).1, 2.0_f32.powi(127), "no more than an f32 has");
}

#[cfg(feature = "cuda")]
#[test]
fn records_have_the_columns_and_bytes_that_are_reserved_for_them() {
    use kigo::backend::cuda::layout;
    for &kind in QuantType::ALL {
        let n_columns = 256.max(kind.block_len());
        let found = unpack(kind, TILE, n_columns, random_blocks(kind, TILE * n_columns / kind.block_len(), 1));
        let expected = (layout::record_columns(kind), layout::record_bytes(kind));
        assert_eq!((found.record_k, found.record_bytes as u64), expected, "{}", kind.name());
    }
}
