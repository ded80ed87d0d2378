//! Names from files, made safe to show and to keep.

use crate::error::{Error, Result};

/// `name` as it may stand in a message: plain when it is short printable ASCII, otherwise quoted, escaped and cut
/// to at most 80 bytes.
pub(crate) fn shown(name: &[u8]) -> String {
    if !name.is_empty() && name.len() <= 80 && name.iter().all(|&b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
        return String::from_utf8_lossy(name).into_owned();
    }
    let mut text = String::from("\"");
    for &byte in name {
        let escaped = std::ascii::escape_default(byte);
        if text.len() + escaped.len() > 76 {
            return text + "\"...";
        }
        text.extend(escaped.map(char::from));
    }
    text + "\""
}

/// A copy of `text`, or [`Error::OutOfMemory`].
pub(crate) fn owned(text: &str) -> Result<String> {
    let mut copy = String::new();
    let out_of_memory = |_| Error::OutOfMemory { what: "a name".to_string(), bytes: text.len() as u64 };
    copy.try_reserve_exact(text.len()).map_err(out_of_memory)?;
    copy.push_str(text);
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_is_printable_and_bounded() {
        assert_eq!(shown(b"general.alignment"), "general.alignment");
        assert_eq!(shown(b""), "\"\"");
        assert_eq!(shown(b"a\nb"), "\"a\\nb\"");
        for name in [vec![b'x'; 10_000], vec![0xff; 10_000], vec![b'"'; 80]] {
            let text = shown(&name);
            assert!(text.len() <= 80 && text.ends_with("...") && text.bytes().all(|b| (0x20..0x7f).contains(&b)));
        }
    }
}
