//! A checksum that finds damage, not malice.

use std::fmt;

/// Takes bytes piece by piece; where a piece ends counts.
#[derive(Debug, Clone, Copy)]
pub struct Checksum(u64);

impl Checksum {
    /// Of nothing.
    pub fn new() -> Checksum {
        Checksum(0x6b69_676f)
    }

    /// One to one for each word, so that no change of a single word is missed.
    fn word(&mut self, word: u64) {
        // Odd, and with as many ones as zeros (2^64 divided by the golden ratio).
        self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    }

    /// Takes a piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.word(piece.len() as u64);
        let (words, rest) = piece.as_chunks();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.word(u64::from_le_bytes(last));
    }

    /// What the pieces so far come to.
    pub fn value(mut self) -> u64 {
        self.word(0);
        self.word(0);
        self.0
    }
}

/// Text that is written is a piece each time.
impl fmt::Write for Checksum {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.add(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_byte_and_every_shifted_border_shows() {
        let of = |pieces: &[&[u8]]| {
            let mut sum = Checksum::new();
            pieces.iter().for_each(|piece| sum.add(piece));
            sum.value()
        };
        let bytes: Vec<u8> = (0..100).collect();
        let expected = of(&[&bytes]);
        for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut other = bytes.clone();
            other[at] ^= 1 << bit;
            assert_ne!(of(&[&other]), expected, "bit {bit} of byte {at}");
        }
        assert!((0..100).all(|at| of(&[&bytes[..at], &bytes[at..]]) != expected));
        assert_ne!(of(&[b"a\0"]), of(&[b"a"]));
    }
}
