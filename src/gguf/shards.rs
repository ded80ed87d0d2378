//! Models split into several files, named `NAME-00001-of-00003.gguf` and so on.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use super::parse::Parsed;
use super::text::shown;
use crate::error::{Error, Result};

/// Which part of a split model a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// `split.no`: number of the file, from 0.
    pub no: u16,
    /// `split.count`: number of files, at least 2.
    pub count: u16,
}

impl Split {
    /// What `metadata` says; `None` for a model in one file. A count of 0 or 1 is one file: the tool that merges
    /// splits leaves a 0 behind.
    pub(super) fn of(metadata: &Metadata) -> Result<Option<Split>> {
        let number = |key: &str| -> Result<Option<u16>> {
            let wrong = |found: String| Error::bad_file(key, "an integer from 0 to 65535", found);
            let value =
                metadata.u32(key).map_err(|_| wrong(metadata.get(key).map_or_else(String::new, |v| v.describe())))?;
            value.map(|v| u16::try_from(v).map_err(|_| wrong(v.to_string()))).transpose()
        };
        let count = number("split.count")?.unwrap_or(0);
        if count < 2 {
            return Ok(None);
        }
        let no = Metadata::require("split.no", number("split.no")?)?;
        if no >= count {
            return Err(Error::bad_file("split.no", format!("a number below split.count, which is {count}"), no));
        }
        Ok(Some(Split { no, count }))
    }

    /// What follows the common part of the names of the files.
    fn suffix(self) -> String {
        format!("-{:05}-of-{:05}.gguf", u32::from(self.no) + 1, self.count)
    }

    /// The paths of all files of the model of which the file at `path` is this part.
    pub(super) fn siblings(self, path: &Path) -> Result<impl Iterator<Item = (Split, PathBuf)>> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let Some(stem) = name.strip_suffix(self.suffix().as_bytes()) else {
            let field = format!("file name of part {} of {}", u32::from(self.no) + 1, self.count);
            let expected = format!("a name that ends in {}, so that the other parts can be found", self.suffix());
            return Err(Error::bad_file(field, expected, shown(name)));
        };
        let (stem, folder) = (stem.to_vec(), path.parent().unwrap_or(Path::new("")).to_path_buf());
        Ok((0..self.count).map(move |no| {
            let split = Split { no, ..self };
            let name = [stem.as_slice(), split.suffix().as_bytes()].concat();
            (split, folder.join(OsString::from_vec(name)))
        }))
    }
}

/// Checks that `part` may follow `first`, the part that holds the metadata of the model: its place must be
/// `expected`, and each key that it repeats must have the same value.
pub(super) fn check_part(first: &Metadata, part: &Parsed, expected: Split) -> Result<()> {
    match Split::of(&part.metadata)? {
        Some(found) if found == expected => {}
        found => {
            let text = |split: Split| format!("part {} of {}", u32::from(split.no) + 1, split.count);
            let found = found.map_or_else(|| "a model in one file".to_string(), text);
            return Err(Error::bad_file("split.no and split.count", text(expected), found));
        }
    }
    for (key, value) in part.metadata.iter() {
        // These two describe the file, not the model.
        if matches!(key, "split.no" | "general.alignment") {
            continue;
        }
        if let Some(expected) = first.get(key).filter(|&first| first != value) {
            let expected = format!("{} as in the first part", expected.describe());
            return Err(Error::bad_file(shown(key.as_bytes()), expected, value.describe()));
        }
    }
    Ok(())
}

/// Checks that the parts together have the tensors that the first one promises.
pub(super) fn check_total(first: &Metadata, n_tensors: usize) -> Result<()> {
    const KEY: &str = "split.tensors.count";
    match first.u64(KEY)? {
        Some(promised) if promised != n_tensors as u64 => {
            let found = format!("{n_tensors}; a part belongs to another model");
            Err(Error::bad_file(KEY, format!("{promised} tensors in all parts"), found))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Value;

    fn split(pairs: &[(&str, Value)]) -> Result<Option<Split>> {
        let mut metadata = Metadata::new();
        pairs.iter().for_each(|(key, value)| metadata.insert(key, value.clone()).unwrap());
        Split::of(&metadata)
    }

    #[test]
    fn split_keys_are_checked() {
        assert_eq!(split(&[]).unwrap(), None);
        assert_eq!(split(&[("split.count", Value::U16(0))]).unwrap(), None);
        assert_eq!(split(&[("split.count", Value::U16(1)), ("split.no", Value::U16(0))]).unwrap(), None);
        let two = [("split.count", Value::U16(2)), ("split.no", Value::I32(1))];
        assert_eq!(split(&two).unwrap(), Some(Split { no: 1, count: 2 }));
        assert!(split(&[("split.count", Value::U16(2))]).is_err());
        assert!(split(&[("split.count", Value::from("2"))]).is_err());
        assert!(split(&[("split.count", Value::U32(65_536))]).is_err());
        assert!(split(&[("split.count", Value::U16(2)), ("split.no", Value::U16(2))]).is_err());
    }

    #[test]
    fn siblings_are_found_by_name() {
        let two = Split { no: 1, count: 2 };
        let names: Vec<_> = two.siblings(Path::new("a/m-00002-of-00002.gguf")).unwrap().map(|(_, path)| path).collect();
        assert_eq!(names, [Path::new("a/m-00001-of-00002.gguf"), Path::new("a/m-00002-of-00002.gguf")]);
        for name in ["m.gguf", "m-00001-of-00002.gguf", "m-00002-of-00003.gguf", ""] {
            assert!(two.siblings(Path::new(name)).is_err(), "{name}");
        }
    }
}
