//! Every quantisation type against gguf-py: `tests/data/quant` is written by `tools/make_quant_goldens.py`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use kigo::quant::{Block, BlockVisitor, QuantType};
use proptest::prelude::*;
use std::path::Path;

/// Blocks of one type and the weights that gguf-py makes of them.
struct Golden {
    id: u32,
    block_len: usize,
    block_bytes: usize,
    blocks: Vec<u8>,
    weights: Vec<f32>,
}

fn golden(t: QuantType) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/quant/{}.bin", t.name().to_lowercase()));
    let data = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; run make_quant_goldens.py", path.display()));
    let (header, data) = data.split_at(16);
    let header: Vec<u32> = header.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    let (block_len, block_bytes, n) = (header[1] as usize, header[2] as usize, header[3] as usize);
    let (blocks, weights) = data.split_at(n * block_bytes);
    assert_eq!(weights.len(), n * block_len * 4, "{}", path.display());
    let weights = weights.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Golden { id: header[0], block_len, block_bytes, blocks: blocks.to_vec(), weights }
}

/// Equal bits, or both NaN: IEEE 754 leaves open which NaN an operation gives.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn dequantize_is_what_gguf_py_gives() {
    for &t in QuantType::ALL {
        let golden = golden(t);
        let mut out = vec![0.0; golden.weights.len()];
        t.dequantize(&golden.blocks, &mut out);
        for (i, (&found, &expected)) in out.iter().zip(&golden.weights).enumerate() {
            assert!(same(found, expected), "{} weight {i}: expected {expected:e}, found {found:e}", t.name());
        }
        assert!(golden.weights.iter().any(|w| w.is_normal()), "{}", t.name());
    }
}

#[test]
fn wide_vectors_give_the_same_bits() {
    struct Wide<'a>(&'a [u8], &'a mut [f32]);
    impl BlockVisitor for Wide<'_> {
        type Output = ();
        fn visit<B: Block>(self) {
            pulp::Arch::new().dispatch(|| B::dequantize_run(self.0, self.1));
        }
    }
    for &t in QuantType::ALL {
        let golden = golden(t);
        let mut out = vec![0.0; golden.weights.len()];
        t.visit(Wide(&golden.blocks, &mut out));
        assert!(out.iter().zip(&golden.weights).all(|(&a, &b)| same(a, b)), "{}", t.name());
    }
}

#[test]
fn table_is_that_of_gguf_py() {
    for &t in QuantType::ALL {
        let golden = golden(t);
        assert_eq!((t as u32, t.block_len(), t.block_bytes()), (golden.id, golden.block_len, golden.block_bytes));
        assert_eq!(QuantType::from_ggml_id(golden.id), Some(t));
    }
    assert_eq!(QuantType::from_ggml_id(4), None);
    assert_eq!(QuantType::from_ggml_id(u32::MAX), None);
}

#[test]
fn numbers_and_names_are_unique() {
    for (i, &a) in QuantType::ALL.iter().enumerate() {
        for &b in &QuantType::ALL[i + 1..] {
            assert_ne!(a as u32, b as u32);
            assert_ne!(a.name(), b.name());
        }
        assert!(QuantType::known().split(", ").any(|name| name == a.name()));
    }
}

#[test]
fn bytes_are_whole_blocks_and_checked() {
    for &t in QuantType::ALL {
        let (len, bytes) = (t.block_len() as u64, t.block_bytes() as u64);
        assert_eq!(t.bytes(0), Some(0));
        assert_eq!(t.bytes(3 * len), Some(3 * bytes));
        let most = u64::MAX / len;
        assert_eq!(t.bytes(most * len), most.checked_mul(bytes), "{}", t.name());
        if len > 1 {
            assert_eq!(t.bytes(1), None);
            assert_eq!(t.bytes(len - 1), None);
            assert_eq!(t.bytes(3 * len + 1), None);
        }
    }
    assert_eq!(QuantType::F32.bytes(u64::MAX), None);
    assert_eq!(QuantType::Q4_1.bytes(576), Some(360));
    assert_eq!(QuantType::Q6_K.bytes(4096), Some(3360));
}

#[test]
fn every_half_is_widened_exactly() {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    let mut out = vec![0.0; halves.len()];
    QuantType::F16.dequantize(&bytes, &mut out);
    for (&half, &found) in halves.iter().zip(&out) {
        let expected = half::f16::from_bits(half).to_f32();
        assert!(same(found, expected), "{half:#06x}: expected {expected:e}, found {found:e}");
    }
}

#[test]
#[should_panic(expected = "64 weights of Q8_0")]
fn lengths_that_do_not_belong_together_are_refused() {
    QuantType::Q8_0.dequantize(&[0; 34], &mut [0.0; 64]);
}

proptest! {
    /// The weights of a block do not depend on where it stands or on what is beside it.
    #[test]
    fn blocks_are_independent(t in prop::sample::select(QuantType::ALL), seed in prop::collection::vec(any::<u8>(), 5 * 210)) {
        let (len, bytes) = (t.block_len(), t.block_bytes());
        let row = &seed[..5 * bytes];
        let mut together = vec![0.0; 5 * len];
        t.dequantize(row, &mut together);
        for (block, expected) in row.chunks(bytes).zip(together.chunks(len)) {
            let mut alone = vec![0.0; len];
            t.dequantize(block, &mut alone);
            prop_assert!(alone.iter().zip(expected).all(|(&a, &b)| same(a, b)));
        }
    }
}
