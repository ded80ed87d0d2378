//! Unicode's composed form (NFC), which some tokenizers bring a text into before anything else. The tables are newer than
//! those of Hugging Face, which do not know combining characters of the last years.

use unicode_normalization::char::canonical_combining_class;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::error::{Error, Result};

/// Longer runs of combining characters stay as they are: sorting them takes memory that cannot be refused. Text that
/// somebody reads has at most 30 (Unicode's Stream-Safe Text Format).
const LONGEST: usize = 4096;

/// `text` in composed form; `buffer` holds it when it differs.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub fn composed<'a>(text: &'a str, buffer: &'a mut String) -> Result<&'a str> {
    if is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return Ok(text);
    }
    let mut rest = text;
    while !rest.is_empty() {
        let (start, end) = long_run(rest);
        for c in rest[..start].nfc().chain(rest[start..end].chars()) {
            let room = |_| Error::OutOfMemory { what: "the text to tokenize".to_string(), bytes: text.len() as u64 };
            buffer.try_reserve(c.len_utf8()).map_err(room)?;
            buffer.push(c);
        }
        rest = &rest[end..];
    }
    Ok(buffer)
}

/// Where the first run of more than [`LONGEST`] combining characters begins and ends; the end of the text if there is none.
fn long_run(text: &str) -> (usize, usize) {
    let (mut start, mut count) = (0, 0);
    for (at, c) in text.char_indices() {
        if canonical_combining_class(c) != 0 {
            count += 1;
            continue;
        }
        if count > LONGEST {
            return (start, at);
        }
        (start, count) = (at + c.len_utf8(), 0);
    }
    if count > LONGEST { (start, text.len()) } else { (text.len(), text.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nfc(text: &str) -> String {
        let mut buffer = String::new();
        composed(text, &mut buffer).unwrap().to_string()
    }

    #[test]
    fn characters_are_composed() {
        assert_eq!(nfc("e\u{301} A\u{30a}"), "\u{e9} \u{c5}");
        assert_eq!(nfc("\u{1100}\u{1161}\u{11a8}"), "\u{ac01}");
        assert_eq!(nfc("\u{212b}ngstro\u{308}m"), "\u{c5}ngstr\u{f6}m");
        assert_eq!(nfc("\u{fb01} x\u{b2}"), "\u{fb01} x\u{b2}", "no compatibility forms");
        assert_eq!(nfc(""), "");
    }

    #[test]
    fn endless_runs_of_combining_characters_stay() {
        let run = "\u{301}\u{323}".repeat(LONGEST);
        assert_eq!(nfc(&format!("e\u{301}e{run}e\u{301}")), format!("\u{e9}e{run}\u{e9}"));
        let short = format!("e{}", "\u{301}\u{323}".repeat(LONGEST / 2));
        assert!(nfc(&short).starts_with('\u{1eb9}'));
    }
}
