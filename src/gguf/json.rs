//! Metadata as JSON, with every digit.

use std::io::Write;
use std::ops::Range;

use super::array::Array;
use super::metadata::Value;
use crate::error::{Error, Result};

/// JSON while it is written; memory that cannot be had is an error.
struct Json {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Json {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.try_reserve(bytes.len()).is_err() {
            self.full = true;
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Value {
    /// The value as JSON; of an array the elements of `range`, as far as it has them.
    ///
    /// Integers and floating-point numbers have all digits that tell them from others of their type; those that are
    /// not finite are the strings "NaN", "Infinity" and "-Infinity". Bytes of strings that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn to_json(&self, range: Range<usize>) -> Result<String> {
        let mut json = Json { bytes: Vec::new(), full: false };
        let written = match self {
            Value::Array(array) => json.array(array, range),
            scalar => json.scalar(scalar),
        };
        match written {
            Ok(()) => String::from_utf8(json.bytes).map_err(|_| Error::Internal("JSON that is not UTF-8".into())),
            Err(_) if json.full => {
                let bytes = json.bytes.len() as u64;
                Err(Error::OutOfMemory { what: "the text of a value".into(), bytes })
            }
            Err(error) => Err(Error::Internal(error.to_string())),
        }
    }
}

impl Json {
    fn scalar(&mut self, value: &Value) -> std::io::Result<()> {
        match value {
            Value::String(bytes) => self.string(bytes),
            Value::F32(number) => self.float(f64::from(*number), number.is_finite().then(|| number.to_string())),
            Value::F64(number) => self.float(*number, number.is_finite().then(|| number.to_string())),
            Value::Bool(value) => write!(self, "{value}"),
            Value::U64(number) => write!(self, "{number}"),
            _ => write!(self, "{}", value.integer().unwrap_or_default()),
        }
    }

    /// `digits` is the number, if it is finite.
    fn float(&mut self, number: f64, digits: Option<String>) -> std::io::Result<()> {
        match digits {
            // So that readers who tell integers from numbers see what it is.
            Some(digits) if !digits.contains('.') => write!(self, "{digits}.0"),
            Some(digits) => write!(self, "{digits}"),
            None if number.is_nan() => write!(self, "\"NaN\""),
            None => write!(self, "\"{}Infinity\"", if number < 0.0 { "-" } else { "" }),
        }
    }

    fn string(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        write!(self, "\"")?;
        for chunk in bytes.utf8_chunks() {
            self.characters(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                write!(self, "\u{FFFD}")?;
            }
        }
        write!(self, "\"")
    }

    fn characters(&mut self, text: &str) -> std::io::Result<()> {
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
            let (plain, from) = rest.split_at(at);
            self.write_all(plain.as_bytes())?;
            let (escaped, after) = from.split_at(1);
            match escaped {
                "\n" => write!(self, "\\n")?,
                "\"" | "\\" => write!(self, "\\{escaped}")?,
                other => write!(self, "\\u{:04x}", other.bytes().next().unwrap_or_default())?,
            }
            rest = after;
        }
        self.write_all(rest.as_bytes())
    }

    fn array(&mut self, array: &Array, range: Range<usize>) -> std::io::Result<()> {
        match array {
            Array::U8(v) => self.elements(part(v, range), |v| Value::U8(*v)),
            Array::I8(v) => self.elements(part(v, range), |v| Value::I8(*v)),
            Array::U16(v) => self.elements(part(v, range), |v| Value::U16(*v)),
            Array::I16(v) => self.elements(part(v, range), |v| Value::I16(*v)),
            Array::U32(v) => self.elements(part(v, range), |v| Value::U32(*v)),
            Array::I32(v) => self.elements(part(v, range), |v| Value::I32(*v)),
            Array::U64(v) => self.elements(part(v, range), |v| Value::U64(*v)),
            Array::I64(v) => self.elements(part(v, range), |v| Value::I64(*v)),
            Array::F32(v) => self.elements(part(v, range), |v| Value::F32(*v)),
            Array::F64(v) => self.elements(part(v, range), |v| Value::F64(*v)),
            Array::Bool(v) => self.elements(part(v, range), |v| Value::Bool(*v)),
            Array::String(v) => {
                let strings = range.map_while(|at| v.get(at));
                self.list(strings, |json, bytes| json.string(bytes))
            }
        }
    }

    fn elements<T>(&mut self, values: &[T], value: impl Fn(&T) -> Value) -> std::io::Result<()> {
        self.list(values.iter(), |json, element| json.scalar(&value(element)))
    }

    fn list<T>(
        &mut self,
        elements: impl Iterator<Item = T>,
        mut write: impl FnMut(&mut Json, T) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        write!(self, "[")?;
        for (index, element) in elements.enumerate() {
            if index > 0 {
                write!(self, ",")?;
            }
            write(self, element)?;
        }
        write!(self, "]")
    }
}

/// The elements of `range` that there are.
fn part<T>(values: &[T], range: Range<usize>) -> &[T] {
    let end = range.end.min(values.len());
    values.get(range.start.min(end)..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::StringArray;

    fn json(value: &Value) -> String {
        value.to_json(0..usize::MAX).unwrap()
    }

    #[test]
    fn numbers_keep_every_digit() {
        for (value, expected) in [
            (Value::U64(u64::MAX), "18446744073709551615"),
            (Value::I64(i64::MIN), "-9223372036854775808"),
            (Value::I8(-1), "-1"),
            (Value::F32(0.1), "0.1"),
            (Value::F32(1e4), "10000.0"),
            (Value::F64(0.1_f32.into()), "0.10000000149011612"),
            (Value::F32(f32::NAN), "\"NaN\""),
            (Value::F64(f64::NEG_INFINITY), "\"-Infinity\""),
            (Value::Bool(true), "true"),
        ] {
            assert_eq!(json(&value), expected);
        }
        for number in [f32::MIN_POSITIVE, f32::MAX, 1e-45, -3.402e-10, 0.1 + 0.2] {
            assert_eq!(json(&Value::F32(number)).parse::<f32>().unwrap().to_bits(), number.to_bits());
        }
        for number in [f64::MIN_POSITIVE, f64::MAX, 5e-324, 0.1 + 0.2] {
            assert_eq!(json(&Value::F64(number)).parse::<f64>().unwrap().to_bits(), number.to_bits());
        }
    }

    #[test]
    fn strings_are_read_back_as_they_were() {
        for text in ["", "a\"b\\c\n\t\0\u{1f}d", "🌸 {% if %}", "\u{7f}\u{2028}"] {
            assert_eq!(serde_json::from_str::<String>(&json(&Value::from(text))).unwrap(), text);
        }
        let broken = Value::String(b"a\xffb\xe2\x9c"[..].into());
        assert_eq!(json(&broken), "\"a\u{FFFD}b\u{FFFD}\"");
    }

    #[test]
    fn arrays_come_in_parts() {
        let array = Value::Array(Array::I32(vec![1, -2, 3]));
        assert_eq!(json(&array), "[1,-2,3]");
        for (range, expected) in [(0..0, "[]"), (1..2, "[-2]"), (2..9, "[3]"), (3..4, "[]"), (9..99, "[]")] {
            assert_eq!(array.to_json(range).unwrap(), expected);
        }
        let strings = Value::Array(Array::String(StringArray::try_from_iter(["a", "\"", "c"]).unwrap()));
        assert_eq!(strings.to_json(1..usize::MAX).unwrap(), "[\"\\\"\",\"c\"]");
        assert_eq!(strings.to_json(7..usize::MAX).unwrap(), "[]");
        assert_eq!(json(&Value::Array(Array::Bool(vec![true, false]))), "[true,false]");
    }
}
