//! Arrays of metadata: one vector per element type; strings share one buffer.

use super::metadata::type_name;
use crate::error::{Error, Result};

/// An array of metadata. The specification also allows arrays of arrays; kigo refuses them, as llama.cpp does,
/// because no model uses them.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Element type 0.
    U8(Vec<u8>),
    /// Element type 1.
    I8(Vec<i8>),
    /// Element type 2.
    U16(Vec<u16>),
    /// Element type 3.
    I16(Vec<i16>),
    /// Element type 4.
    U32(Vec<u32>),
    /// Element type 5.
    I32(Vec<i32>),
    /// Element type 6.
    F32(Vec<f32>),
    /// Element type 7.
    Bool(Vec<bool>),
    /// Element type 8.
    String(StringArray),
    /// Element type 10.
    U64(Vec<u64>),
    /// Element type 11.
    I64(Vec<i64>),
    /// Element type 12.
    F64(Vec<f64>),
}

impl Array {
    /// How many elements it has.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number that the specification gives the type of the elements.
    pub fn type_id(&self) -> u32 {
        match self {
            Array::U8(_) => 0,
            Array::I8(_) => 1,
            Array::U16(_) => 2,
            Array::I16(_) => 3,
            Array::U32(_) => 4,
            Array::I32(_) => 5,
            Array::F32(_) => 6,
            Array::Bool(_) => 7,
            Array::String(_) => 8,
            Array::U64(_) => 10,
            Array::I64(_) => 11,
            Array::F64(_) => 12,
        }
    }

    /// The name that the specification gives the type of the elements.
    pub fn type_name(&self) -> &'static str {
        type_name(self.type_id()).unwrap_or("")
    }
}

/// Byte strings in one buffer: a string costs its bytes and four more, so that a vocabulary of short tokens
/// takes less memory than it does in the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StringArray {
    bytes: Vec<u8>,
    /// Where each string ends in `bytes`; it starts where the one before it ends.
    ends: Vec<u32>,
}

impl StringArray {
    /// No strings.
    pub fn new() -> StringArray {
        StringArray::default()
    }

    /// No strings, with room for `len` of them (not for their bytes).
    pub fn with_capacity(len: usize) -> Result<StringArray> {
        Ok(StringArray { bytes: Vec::new(), ends: crate::error::try_vec(len, "an array of strings")? })
    }

    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String number `at`.
    pub fn get(&self, at: usize) -> Option<&[u8]> {
        let start = match at.checked_sub(1) {
            None => 0,
            Some(before) => *self.ends.get(before)?,
        };
        self.bytes.get(start as usize..*self.ends.get(at)? as usize)
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let string = &self.bytes[start..end as usize];
            start = end as usize;
            string
        })
    }

    /// Appends a string.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Limit`] when all strings together would exceed 4 GiB.
    pub fn push(&mut self, string: &[u8]) -> Result<()> {
        self.push_with(string.len(), |room| {
            room.copy_from_slice(string);
            Ok(())
        })
    }

    /// Appends a string of `len` bytes that `fill` writes; when `fill` fails nothing is appended.
    pub(super) fn push_with(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let start = self.bytes.len();
        let end = start.checked_add(len).and_then(|end| u32::try_from(end).ok());
        let end = end.ok_or(Error::Limit { what: "bytes in an array of strings", limit: u32::MAX.into() })?;
        let out_of_memory = |_| Error::OutOfMemory { what: "an array of strings".to_string(), bytes: len as u64 };
        self.ends.try_reserve(1).map_err(out_of_memory)?;
        // A file of nothing but empty strings has millions of them.
        if len > 0 {
            self.bytes.try_reserve(len).map_err(out_of_memory)?;
            self.bytes.resize(start + len, 0);
            if let Err(error) = fill(&mut self.bytes[start..]) {
                self.bytes.truncate(start);
                return Err(error);
            }
        }
        self.ends.push(end);
        Ok(())
    }

    /// Gives back the room that growing left over; keeps it when there is no memory to copy into.
    pub(super) fn shrink(&mut self) {
        if let Ok(mut exact) = crate::error::try_vec(self.bytes.len(), "an array of strings") {
            exact.extend_from_slice(&self.bytes);
            self.bytes = exact;
        }
    }

    /// The strings of `strings`.
    ///
    /// # Errors
    /// Those of [`StringArray::push`].
    pub fn try_from_iter<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Result<StringArray> {
        let mut array = StringArray::new();
        for string in strings {
            array.push(string.as_ref())?;
        }
        Ok(array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back_as_they_went_in() {
        let strings: [&[u8]; 5] = [b"", b"a", b"\xff\x00", b"", b"long enough"];
        let array = StringArray::try_from_iter(strings).unwrap();
        assert_eq!(array.iter().collect::<Vec<_>>(), strings);
        for (i, string) in strings.iter().enumerate() {
            assert_eq!(array.get(i), Some(*string));
        }
        assert_eq!((array.get(5), array.get(usize::MAX)), (None, None));
        assert!(StringArray::new().is_empty() && StringArray::new().get(0).is_none());
    }

    #[test]
    fn a_failed_push_appends_nothing() {
        let mut array = StringArray::try_from_iter(["a"]).unwrap();
        assert!(array.push_with(3, |_| Err(Error::Busy)).is_err());
        array.push(b"b").unwrap();
        assert_eq!(array.iter().collect::<Vec<_>>(), [b"a", b"b"]);
    }
}
