//! Metadata: the key-value pairs of a GGUF file, in the order of the file, with getters that check types.

use std::borrow::Cow;
use std::collections::HashMap;

use super::array::{Array, StringArray};
use super::text::{owned, shown};
use crate::error::{Error, Result, quoted};

/// One metadata value. Variants are the value types of the GGUF specification.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Type 0.
    U8(u8),
    /// Type 1.
    I8(i8),
    /// Type 2.
    U16(u16),
    /// Type 3.
    I16(i16),
    /// Type 4.
    U32(u32),
    /// Type 5.
    I32(i32),
    /// Type 6.
    F32(f32),
    /// Type 7, one byte that is 0 or 1.
    Bool(bool),
    /// Type 8, bytes that ought to be UTF-8; [`Metadata::str`] checks it.
    String(Box<[u8]>),
    /// Type 9.
    Array(Array),
    /// Type 10.
    U64(u64),
    /// Type 11.
    I64(i64),
    /// Type 12.
    F64(f64),
}

impl Value {
    /// The number that the specification gives the type.
    pub fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) => 4,
            Value::I32(_) => 5,
            Value::F32(_) => 6,
            Value::Bool(_) => 7,
            Value::String(_) => 8,
            Value::Array(_) => 9,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
        }
    }

    /// The name that the specification gives the type.
    pub fn type_name(&self) -> &'static str {
        type_name(self.type_id()).unwrap_or("")
    }

    /// Type and value in a few printable words, for messages.
    pub fn describe(&self) -> String {
        let value = match self {
            Value::String(v) => quoted(v),
            Value::Array(v) => format!("of {} {}", v.len(), v.type_name()),
            Value::F32(v) => v.to_string(),
            Value::Bool(v) => v.to_string(),
            Value::F64(v) => format!("{v:e}"),
            _ => self.integer().map_or_else(String::new, |v| v.to_string()),
        };
        format!("{} {value}", self.type_name())
    }

    /// The value of an integer of any type.
    pub(crate) fn integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            Value::F32(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::F64(_) => None,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.as_bytes().into())
    }
}

/// The name of value type `id` in the specification.
pub fn type_name(id: u32) -> Option<&'static str> {
    const NAMES: [&str; 13] = [
        "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "BOOL", "STRING", "ARRAY", "UINT64", "INT64",
        "FLOAT64",
    ];
    NAMES.get(usize::try_from(id).ok()?).copied()
}

/// The key-value pairs of a file, in its order.
///
/// A getter returns `Ok(None)` when the key is absent and [`Error::BadFile`], naming key, expected and found
/// type, when the value is of another type. Integer getters accept every integer type whose value fits, because
/// writers disagree about widths.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    pairs: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// No pairs.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The pairs in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The key and value of pair number `at`.
    pub fn pair(&self, at: usize) -> Option<(&str, &Value)> {
        self.pairs.get(at).map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`, in constant time.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).and_then(|&at| self.pairs.get(at)).map(|(_, value)| value)
    }

    /// Appends a pair.
    ///
    /// # Errors
    /// [`Error::BadFile`] when the key is there already, [`Error::OutOfMemory`].
    pub fn insert(&mut self, key: &str, value: Value) -> Result<()> {
        if let Some(first) = self.get(key) {
            let found = format!("a second one ({}) after {}", value.type_name(), first.type_name());
            return Err(Error::bad_file(shown(key.as_bytes()), "each key once", found));
        }
        let out_of_memory = |_| Error::OutOfMemory { what: "the metadata".to_string(), bytes: key.len() as u64 };
        self.pairs.try_reserve(1).map_err(out_of_memory)?;
        self.index.try_reserve(1).map_err(out_of_memory)?;
        let (name, indexed) = (owned(key)?, owned(key)?);
        self.index.insert(indexed, self.pairs.len());
        self.pairs.push((name, value));
        Ok(())
    }

    /// `value`, or [`Error::BadFile`] saying that `key` is missing:
    /// `Metadata::require(key, metadata.u32(key)?)?`.
    pub fn require<T>(key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::bad_file(shown(key.as_bytes()), "this key in the metadata", "no such key"))
    }

    /// An integer of any type from 0 to 2^32 - 1.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.integer(key, "an integer from 0 to 4294967295")
    }

    /// An integer of any type that is not negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.integer(key, "an integer that is not negative")
    }

    /// An integer of any type from -2^63 to 2^63 - 1.
    pub fn i64(&self, key: &str) -> Result<Option<i64>> {
        self.integer(key, "an integer below 2^63")
    }

    /// FLOAT32, or FLOAT64 rounded to it. Integers are refused: no writer uses them for a real number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a FLOAT32", |value| match *value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        })
    }

    /// BOOL.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a BOOL", |value| match *value {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    /// STRING that is UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a STRING in UTF-8", |value| match value {
            Value::String(v) => std::str::from_utf8(v).ok(),
            _ => None,
        })
    }

    /// ARRAY of STRING; the elements are bytes that need not be UTF-8.
    pub fn strings(&self, key: &str) -> Result<Option<&StringArray>> {
        self.typed(key, "an ARRAY of STRING", |value| match value {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        })
    }

    /// ARRAY of FLOAT32.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "an ARRAY of FLOAT32", |value| match value {
            Value::Array(Array::F32(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// ARRAY of INT32, or of UINT32 whose elements are below 2^31.
    pub fn i32s(&self, key: &str) -> Result<Option<Cow<'_, [i32]>>> {
        const EXPECTED: &str = "an ARRAY of INT32";
        match self.get(key) {
            Some(Value::Array(Array::U32(array))) => {
                let mut out = crate::error::try_vec(array.len(), key)?;
                for &v in array {
                    let found = || Error::bad_file(shown(key.as_bytes()), EXPECTED, format!("an element {v}"));
                    out.push(i32::try_from(v).map_err(|_| found())?);
                }
                Ok(Some(Cow::Owned(out)))
            }
            _ => self.typed(key, EXPECTED, |value| match value {
                Value::Array(Array::I32(v)) => Some(Cow::Borrowed(v.as_slice())),
                _ => None,
            }),
        }
    }

    fn integer<T: TryFrom<i128>>(&self, key: &str, expected: &str) -> Result<Option<T>> {
        self.typed(key, expected, |value| T::try_from(value.integer()?).ok())
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, pick: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match pick(value) {
                Some(picked) => Ok(Some(picked)),
                None => Err(Error::bad_file(shown(key.as_bytes()), expected, value.describe())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, Value)]) -> Metadata {
        let mut metadata = Metadata::new();
        for (key, value) in pairs {
            metadata.insert(key, value.clone()).unwrap();
        }
        metadata
    }

    #[test]
    fn order_is_kept_and_lookup_finds_every_key() {
        let m = metadata(&[("b", Value::U8(1)), ("a", Value::U8(2)), ("c", Value::U8(3))]);
        assert_eq!(m.iter().map(|(key, _)| key).collect::<String>(), "bac");
        assert_eq!(m.get("a"), Some(&Value::U8(2)));
        assert_eq!(m.get("d"), None);
    }

    #[test]
    fn integers_of_every_type_are_accepted_when_they_fit() {
        let m = metadata(&[
            ("u8", Value::U8(7)),
            ("i8", Value::I8(7)),
            ("u16", Value::U16(7)),
            ("i16", Value::I16(7)),
            ("u32", Value::U32(7)),
            ("i32", Value::I32(7)),
            ("u64", Value::U64(7)),
            ("i64", Value::I64(7)),
            ("negative", Value::I32(-1)),
            ("large", Value::U64(1 << 32)),
            ("largest", Value::U64(u64::MAX)),
        ]);
        for key in ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"] {
            assert_eq!(m.u32(key).unwrap(), Some(7), "{key}");
            assert_eq!(m.u64(key).unwrap(), Some(7), "{key}");
            assert_eq!(m.i64(key).unwrap(), Some(7), "{key}");
        }
        assert!(m.u32("negative").is_err() && m.u64("negative").is_err());
        assert_eq!(m.i64("negative").unwrap(), Some(-1));
        assert!(m.u32("large").is_err());
        assert_eq!(m.u64("largest").unwrap(), Some(u64::MAX));
        assert!(m.i64("largest").is_err());
    }

    #[test]
    fn errors_name_key_expected_and_found() {
        let m = metadata(&[("k", Value::from("x\n")), ("s", Value::String(Box::new([0xff])))]);
        let text = |e: Error| e.to_string();
        assert_eq!(text(m.u32("k").unwrap_err()), "k: expected an integer from 0 to 4294967295, found STRING \"x\\n\"");
        assert_eq!(text(m.f32("k").unwrap_err()), "k: expected a FLOAT32, found STRING \"x\\n\"");
        assert_eq!(text(m.str("s").unwrap_err()), "s: expected a STRING in UTF-8, found STRING \"\\xff\"");
        let missing = Metadata::require("m", m.u32("m").unwrap()).unwrap_err();
        assert_eq!(text(missing), "m: expected this key in the metadata, found no such key");
    }

    #[test]
    fn arrays_are_checked_by_element_type() {
        let m = metadata(&[
            ("i8", Value::Array(Array::I8(vec![1, 2]))),
            ("i32", Value::Array(Array::I32(vec![1, -2]))),
            ("u32", Value::Array(Array::U32(vec![1, 2]))),
            ("big", Value::Array(Array::U32(vec![1 << 31]))),
            ("f32", Value::Array(Array::F32(vec![0.5]))),
        ]);
        assert_eq!(m.i32s("i8").unwrap_err().to_string(), "i8: expected an ARRAY of INT32, found ARRAY of 2 INT8");
        assert_eq!(m.i32s("i32").unwrap().unwrap().as_ref(), [1, -2]);
        assert_eq!(m.i32s("u32").unwrap().unwrap().as_ref(), [1, 2]);
        assert!(m.i32s("big").is_err());
        assert_eq!(m.f32s("f32").unwrap(), Some([0.5].as_slice()));
        assert!(m.f32s("i32").is_err() && m.strings("i32").is_err());
    }

    #[test]
    fn a_second_key_is_refused_and_nothing_changes() {
        let mut m = metadata(&[("k", Value::U8(1))]);
        assert!(m.insert("k", Value::U8(1)).is_err());
        assert!(m.insert("k", Value::from("x")).is_err());
        assert_eq!((m.len(), m.get("k")), (1, Some(&Value::U8(1))));
    }
}
