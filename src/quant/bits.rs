//! Pieces of blocks: halves, and eight small integers at a time in one word.
//!
//! Unpacking in words is fast even where the compiler does not turn it into vectors; turning the bytes into f32 is
//! then one plain loop over a whole block, which it always does.

/// The first `N` items of `slice`. The one bounds check of a block; it folds away where the length is known.
#[inline(always)]
pub(super) fn array<T, const N: usize>(slice: &[T]) -> &[T; N] {
    &slice.as_chunks().0[0]
}

/// Like [`array`], to write.
#[inline(always)]
pub(super) fn array_mut<T, const N: usize>(slice: &mut [T]) -> &mut [T; N] {
    &mut slice.as_chunks_mut().0[0]
}

/// The little-endian half at byte `at` of `block`, widened exactly. Branch-free, so that it vectorises, and
/// without arithmetic on subnormals, so that a host that flushes them to zero changes nothing.
#[inline(always)]
pub(super) fn f16_at(block: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]) as u32;
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    let normal = f32::from_bits((magnitude << 13) + ((127 - 15) << 23));
    let subnormal = magnitude as f32 * f32::from_bits((127 - 24) << 23);
    let special = f32::from_bits((magnitude << 13) | 0x7f80_0000);
    let value = if magnitude < 0x0400 {
        subnormal
    } else if magnitude >= 0x7c00 {
        special
    } else {
        normal
    };
    f32::from_bits(value.to_bits() | sign)
}

/// A half that scales a whole block: [`f16_at`] with a shortcut for normal numbers, which nearly all scales are.
#[inline(always)]
pub(super) fn scale_at(block: &[u8], at: usize) -> f32 {
    let bits = u16::from_le_bytes([block[at], block[at + 1]]) as u32;
    if (bits & 0x7c00).wrapping_sub(0x0400) >= 0x7800 {
        return unusual_scale(bits);
    }
    f32::from_bits(((bits & 0x8000) << 16) | (((bits & 0x7fff) << 13) + ((127 - 15) << 23)))
}

#[cold]
#[inline(never)]
fn unusual_scale(bits: u32) -> f32 {
    f16_at(&bits.to_le_bytes(), 0)
}

/// The eight bytes of `bytes` from `at` as one word, so that masks and shifts act on eight weights at a time.
#[inline(always)]
pub(super) fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*array(&bytes[at..]))
}

/// Writes the eight bytes of `word` to `bytes` from `at`.
#[inline(always)]
pub(super) fn put_word(bytes: &mut [u8], at: usize, word: u64) {
    *array_mut(&mut bytes[at..]) = word.to_le_bytes();
}

/// A word of eight times `byte`.
#[inline(always)]
pub(super) fn splat(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// A word whose byte `i` is bit `i` of `byte`.
#[inline(always)]
pub(super) fn spread_bits(byte: u8) -> u64 {
    let bits = splat(byte) & 0x8040_2010_0804_0201;
    (bits + splat(127)) >> 7 & splat(1)
}

/// Writes the low four bits of every byte of `bytes` to the first half of `out`, the high four to the second.
#[inline(always)]
pub(super) fn split_nibbles(bytes: &[u8], out: &mut [u8]) {
    for i in (0..bytes.len()).step_by(8) {
        let word = word_at(bytes, i);
        put_word(out, i, word & splat(15));
        put_word(out, bytes.len() + i, word >> 4 & splat(15));
    }
}
