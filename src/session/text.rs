//! From token bytes to text that can be shown: complete UTF-8, without stop strings or what may become one.

/// Collects the bytes of tokens and releases text.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    /// Up to 3 bytes of a character that is not complete.
    tail: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    /// Text that may be shown.
    ready: String,
    /// Bytes of text that were shown before.
    shown: usize,
    stop: Vec<String>,
}

impl TextStream {
    /// A stream that ends before any of the strings in `stop`; empty ones are ignored.
    pub fn new(stop: &[String]) -> TextStream {
        TextStream { stop: stop.iter().filter(|s| !s.is_empty()).cloned().collect(), ..Default::default() }
    }

    /// A stream that `pieces` have gone through, of which `shown` bytes of text were shown; whether a stop string came.
    pub fn replayed<'a>(stop: &[String], pieces: impl Iterator<Item = &'a [u8]>, shown: usize) -> (TextStream, bool) {
        let mut stream = TextStream::new(stop);
        let stopped = pieces.into_iter().any(|piece| stream.push(piece));
        let most = shown.min(stream.ready.len());
        let shown = (0..=most).rev().find(|at| stream.ready.is_char_boundary(*at)).unwrap_or(0);
        stream.ready.drain(..shown);
        stream.shown = shown;
        (stream, stopped)
    }

    /// A stream that goes on from here with other stop strings, for text that was not shown yet; whether one of them is
    /// complete already.
    pub fn fork(&self, stop: &[String]) -> (TextStream, bool) {
        let mut stream = TextStream::new(stop);
        stream.ready.push_str(&self.ready);
        stream.held.push_str(&self.held);
        let stopped = stream.push(&self.tail);
        (stream, stopped)
    }

    /// Bytes of text that were shown.
    pub fn shown(&self) -> usize {
        self.shown
    }

    /// Adds the bytes of a token; true when a stop string is complete, and the text is cut before it. Bytes that
    /// can never become UTF-8 turn into U+FFFD, one for each maximal invalid part, as `String::from_utf8_lossy` does.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        let mut complete = 0;
        for chunk in self.tail.utf8_chunks() {
            self.held.push_str(chunk.valid());
            complete += chunk.valid().len();
            let invalid = chunk.invalid();
            if complete + invalid.len() == self.tail.len() && is_beginning_of_char(invalid) {
                break;
            }
            if !invalid.is_empty() {
                self.held.push(char::REPLACEMENT_CHARACTER);
                complete += invalid.len();
            }
        }
        self.tail.drain(..complete);
        self.release()
    }

    /// Releases everything that was held back; an incomplete character becomes U+FFFD.
    pub fn finish(&mut self) {
        if !self.tail.is_empty() {
            self.tail.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        self.ready.push_str(&self.held);
        self.held.clear();
    }

    /// Text that may be shown.
    pub fn ready(&self) -> &str {
        &self.ready
    }

    /// Forgets the text that was shown.
    pub fn clear_ready(&mut self) {
        self.shown += self.ready.len();
        self.ready.clear();
    }

    /// Moves text from held to ready, up to the first stop string or what may become one.
    fn release(&mut self) -> bool {
        let first = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.ready.push_str(&self.held[..at]);
            self.held.clear();
            self.tail.clear();
            return true;
        }
        let keep = self.stop.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let at = self.held.len() - keep;
        self.ready.push_str(&self.held[..at]);
        self.held.drain(..at);
        false
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest).rev().find(|&n| text.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
}

/// Whether more bytes can make `bytes`, which is not UTF-8, the beginning of a character.
fn is_beginning_of_char(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => false,
        Err(error) => error.valid_up_to() == 0 && error.error_len().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes `bytes` in pieces of `size`; what is shown at each step must be final.
    fn stream(bytes: &[u8], size: usize, stop: &[&str]) -> (String, bool) {
        let mut stream = TextStream::new(&stop.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut shown = String::new();
        for piece in bytes.chunks(size) {
            let stopped = stream.push(piece);
            shown.push_str(stream.ready());
            stream.clear_ready();
            if stopped {
                return (shown, true);
            }
        }
        stream.finish();
        shown.push_str(stream.ready());
        (shown, false)
    }

    #[test]
    fn concatenation_is_the_whole_text() {
        let family = "a\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467} 漢字 é";
        let mut broken = family.as_bytes().to_vec();
        broken.splice(3..3, [0x80, 0xe2, 0x9c, 0xc0, 0xaf, 0xed, 0xa0, 0x80, 0xf5]);
        for bytes in [family.as_bytes(), &broken, &family.as_bytes()[..family.len() - 1], b"\xf0\x9f\x91"] {
            for size in 1..9 {
                assert_eq!(stream(bytes, size, &[]).0, String::from_utf8_lossy(bytes), "pieces of {size}");
            }
        }
    }

    #[test]
    fn stop_strings_across_pieces_are_cut() {
        for size in 1..12 {
            assert_eq!(stream(b"one two END three", size, &["END"]), ("one two ".into(), true));
            assert_eq!(stream(b"aaab", size, &["aab"]), ("a".into(), true));
            assert_eq!(stream("naïve漢字".as_bytes(), size, &["漢字", "x"]), ("naïve".into(), true));
        }
    }

    #[test]
    fn the_earliest_stop_string_wins() {
        assert_eq!(stream(b"xx second first", 20, &["first", "second"]), ("xx ".into(), true));
    }

    #[test]
    fn a_beginning_of_a_stop_string_is_released_at_the_end() {
        for size in 1..6 {
            assert_eq!(stream(b"the EN", size, &["END"]), ("the EN".into(), false));
        }
    }
}
