//! A reader of JSON that asks for one value after the other: vocabularies have half a million of them, and no tree is
//! built, nothing recurses, and what nobody asks for is skipped at any depth.

use std::borrow::Cow;

use crate::error::{Error, Result, quoted};

/// A place in a JSON text.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// At the start of `text`.
    pub fn new(text: &'a str) -> Reader<'a> {
        Reader { text, at: 0 }
    }

    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.as_bytes().get(self.at..)?;
        self.at += rest.iter().take_while(|b| b" \t\r\n".contains(b)).count();
        self.text.as_bytes().get(self.at).copied()
    }

    fn wrong(&mut self, field: &str, expected: &str) -> Error {
        let found = match self.peek() {
            None => format!("the end of the file at byte {}", self.at),
            Some(_) => {
                let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
                format!("{} at byte {}", quoted(&rest[..rest.len().min(16)]), self.at)
            }
        };
        bad(field, expected, found)
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Calls `member` at the value of each member of an object; it must read that value.
    pub fn object(
        &mut self,
        field: &str,
        mut member: impl FnMut(&mut Reader<'a>, Cow<'a, str>) -> Result<()>,
    ) -> Result<()> {
        if !self.take(b'{') {
            return Err(self.wrong(field, "an object"));
        }
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string(field)?;
            if !self.take(b':') {
                return Err(self.wrong(field, "a colon"));
            }
            member(self, key)?;
            if self.take(b'}') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.wrong(field, "a comma or the end of the object"));
            }
        }
    }

    /// Calls `element` at each element of an array; it must read that value.
    pub fn array(&mut self, field: &str, mut element: impl FnMut(&mut Reader<'a>, usize) -> Result<()>) -> Result<()> {
        if !self.take(b'[') {
            return Err(self.wrong(field, "an array"));
        }
        if self.take(b']') {
            return Ok(());
        }
        for index in 0.. {
            element(self, index)?;
            if self.take(b']') {
                break;
            }
            if !self.take(b',') {
                return Err(self.wrong(field, "a comma or the end of the array"));
            }
        }
        Ok(())
    }

    /// A string, which lies in the text unless it has escapes.
    pub fn string(&mut self, field: &str) -> Result<Cow<'a, str>> {
        if !self.take(b'"') {
            return Err(self.wrong(field, "a string"));
        }
        let start = self.at;
        let mut copy: Option<String> = None;
        loop {
            let rest = &self.text[self.at..];
            let Some(end) = rest.bytes().position(|b| b == b'"' || b == b'\\' || b < 0x20) else {
                self.at = self.text.len();
                return Err(self.wrong(field, "the end of a string"));
            };
            let part = &rest[..end];
            let done = rest.as_bytes()[end] == b'"';
            if done && copy.is_none() {
                self.at += end + 1;
                return Ok(Cow::Borrowed(&self.text[start..start + end]));
            }
            let copy = copy.get_or_insert_default();
            let room =
                |_| Error::OutOfMemory { what: "a string of tokenizer.json".to_string(), bytes: rest.len() as u64 };
            copy.try_reserve(part.len() + 4).map_err(room)?;
            copy.push_str(part);
            self.at += end;
            if done {
                self.at += 1;
                return Ok(Cow::Owned(std::mem::take(copy)));
            }
            let Some(c) = self.escape() else { return Err(self.wrong(field, "an escape of JSON")) };
            copy.push(c);
        }
    }

    /// The character of an escape, half a pair of surrogates being U+FFFD.
    fn escape(&mut self) -> Option<char> {
        let rest = self.text.as_bytes().get(self.at..)?;
        let simple = match (rest.first()?, rest.get(1)?) {
            (b'\\', b'n') => '\n',
            (b'\\', b't') => '\t',
            (b'\\', b'r') => '\r',
            (b'\\', b'b') => '\u{8}',
            (b'\\', b'f') => '\u{c}',
            (b'\\', &c @ (b'"' | b'\\' | b'/')) => char::from(c),
            (b'\\', b'u') => {
                let unit = |at: usize| {
                    let digits = rest.get(at..at + 6)?.strip_prefix(b"\\u")?;
                    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
                    u16::from_str_radix(digits, 16).ok()
                };
                let first = unit(0)?;
                let pair =
                    unit(6).filter(|second| (0xd800..0xdc00).contains(&first) && (0xdc00..0xe000).contains(second));
                self.at += if pair.is_some() { 12 } else { 6 };
                let mut decoded = char::decode_utf16([Some(first), pair].into_iter().flatten());
                return Some(decoded.next()?.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            _ => return None,
        };
        self.at += 2;
        Some(simple)
    }

    /// A whole number from 0 to 2^32 - 1.
    pub fn number(&mut self, field: &str) -> Result<u32> {
        let mut reader = self.clone();
        let value = self.skip(field)?;
        value.parse().map_err(|_| reader.wrong(field, "an integer from 0 to 4294967295"))
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, field: &str) -> Result<bool> {
        let mut reader = self.clone();
        match self.skip(field)? {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err(reader.wrong(field, "true or false")),
        }
    }

    /// Whether `null` comes, which is read then.
    pub fn null(&mut self) -> bool {
        self.peek();
        let found = self.text[self.at..].starts_with("null");
        self.at += if found { 4 } else { 0 };
        found
    }

    /// Whether a string comes.
    pub fn is_string(&mut self) -> bool {
        self.peek() == Some(b'"')
    }

    /// Reads over a value and gives its text.
    pub fn skip(&mut self, field: &str) -> Result<&'a str> {
        self.peek();
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    let mut escaped = false;
                    let rest = &self.text.as_bytes()[self.at..];
                    let end = rest.iter().position(|&b| {
                        let ends = b == b'"' && !escaped;
                        escaped = b == b'\\' && !escaped;
                        ends
                    });
                    let Some(end) = end else { return Err(self.wrong(field, "the end of a string")) };
                    self.at += end + 1;
                }
                Some(b'[' | b'{') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b']' | b'}') if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(b',' | b':') if depth > 0 => self.at += 1,
                Some(b']' | b'}' | b',' | b':') | None => return Err(self.wrong(field, "a value")),
                Some(_) => {
                    let rest = &self.text.as_bytes()[self.at..];
                    self.at += rest.iter().take_while(|b| !b"[]{},:\" \t\r\n".contains(b)).count();
                }
            }
            if depth == 0 {
                return Ok(&self.text[start..self.at]);
            }
        }
    }

    /// Checks that nothing but white space follows.
    pub fn end(&mut self) -> Result<()> {
        if self.peek().is_none() { Ok(()) } else { Err(self.wrong("the file", "nothing after the object")) }
    }
}

/// The error about a field of tokenizer.json.
pub fn bad(field: &str, expected: impl ToString, found: impl ToString) -> Error {
    Error::bad_file(format!("tokenizer.json: {field}"), expected, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_with_and_without_escapes() {
        let read = |text| Reader::new(text).string("s").map(Cow::into_owned).map_err(|error| error.to_string());
        assert_eq!(read(r#" "Ġa" "#).unwrap(), "Ġa");
        assert_eq!(read(r#""a\n\"\\\/\u0120\ud83d\ude00\ud83dx""#).unwrap(), "a\n\"\\/Ġ😀\u{fffd}x");
        for wrong in ["\"a", "\"\\x\"", "\"\\u12\"", "\"\\u+123\"", "\"a\nb\"", "1", ""] {
            assert!(read(wrong).unwrap_err().starts_with("tokenizer.json: s: expected "), "{wrong}");
        }
    }

    #[test]
    fn values_are_skipped_at_any_depth() {
        let deep = format!("{}{}", "[".repeat(1 << 20), "]".repeat(1 << 20));
        let text = format!(r#"{{"a": {deep}, "b": {{"c": "}}\"]"}}, "d": 7, "e": null, "f": true}}"#);
        let mut seen = Vec::new();
        let mut reader = Reader::new(&text);
        let member = |reader: &mut Reader, key: Cow<str>| {
            seen.push(match &*key {
                "d" => reader.number("d")?.to_string(),
                "e" => reader.null().to_string(),
                "f" => reader.boolean("f")?.to_string(),
                _ => reader.skip("")?.len().to_string(),
            });
            Ok(())
        };
        reader.object("file", member).unwrap();
        assert_eq!(seen, [&(2 << 20).to_string(), "13", "7", "true", "true"]);
        assert!(reader.end().is_ok());
        for wrong in ["[", "{\"a\"", "", "]", "[\"", ","] {
            assert!(Reader::new(wrong).skip("x").is_err(), "{wrong}");
        }
        assert!(Reader::new("-1").number("n").is_err() && Reader::new("4294967296").number("n").is_err());
    }
}
