//! Paths, and models in several files.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::folder::Folder;

/// Checks that `path` cannot be opened, promptly, with a message that has all of `words`.
fn unopenable(path: &Path, status: Status, words: &[&str]) {
    let before = alloc::thread();
    let error = bounded(1 << 20, || Gguf::open(path).expect_err("a bad path loaded"));
    assert_eq!(error.status(), status, "{error}");
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text:?}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    drop((error, text));
    assert_eq!(alloc::thread(), before);
}

#[test]
fn g41_paths_that_are_no_files_are_refused_promptly() {
    let folder = Folder::new();
    unopenable(&folder.path("missing.gguf"), Status::Io, &["missing.gguf", "open"]);
    unopenable(Path::new(""), Status::Io, &["open"]);
    unopenable(Path::new("a\0b"), Status::Io, &["open"]);
    unopenable(&folder.0, Status::Io, &["directory"]);
    unopenable(Path::new("/dev/zero"), Status::Io, &["/dev/zero", "not a regular file"]);
    unopenable(Path::new("/dev/null"), Status::Io, &["not a regular file"]);
    let pipe = folder.path("pipe.gguf");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    unopenable(&pipe, Status::Io, &["pipe.gguf", "not a regular file"]);
    let socket = folder.path("s");
    let _listener = std::os::unix::net::UnixListener::bind(&socket);
    unopenable(&socket, Status::Io, &["open"]);
    let turn = folder.path("loop.gguf");
    symlink(&turn, &turn).unwrap();
    unopenable(&turn, Status::Io, &["loop.gguf"]);
    let file = folder.write("file.gguf", &sample());
    unopenable(&file.join("below"), Status::Io, &["below"]);
    unopenable(&folder.path(&"n".repeat(300)), Status::Io, &["open"]);
    // The length of a file in /proc is 0 whatever reading it would give.
    unopenable(Path::new("/proc/self/maps"), Status::Truncated, &["/proc/self/maps"]);
}

#[test]
fn g41_a_file_without_permission_is_refused() {
    let folder = Folder::new();
    let path = folder.write("secret.gguf", &sample());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&path).is_ok() {
        eprintln!("skipped: this user may open every file");
        return;
    }
    unopenable(&path, Status::Io, &["secret.gguf", "ermission"]);
}

#[test]
fn g41_a_good_file_loads_by_any_path() {
    let folder = Folder::new();
    let path = folder.0.join(OsStr::from_bytes(b"caf\xe9 \xff.gguf"));
    sample().write(&path).unwrap();
    assert_eq!(Gguf::open(&path).unwrap().tensors().len(), 4);
    let link = folder.path("link");
    symlink(&path, &link).unwrap();
    assert_eq!(Gguf::open(&link).unwrap().tensors().len(), 4);
}

#[test]
fn a_sparse_file_cannot_buy_memory_with_its_length() {
    let folder = Folder::new();
    let sparse = |value: Value, len: u64| {
        let bytes = one_pair("the.key", value);
        let at = bytes.len() - 8;
        let path = folder.path("sparse.gguf");
        fs::write(&path, patched(bytes, at, &len.to_le_bytes())).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        path
    };
    let strings = || Value::Array(Array::String(StringArray::new()));
    for (value, len) in [(Value::from(""), 1 << 30), (strings(), 1 << 30), (Value::Array(Array::F64(vec![])), 1 << 27)]
    {
        let path = sparse(value, len);
        bounded(1 << 20, || unopenable(&path, Status::Limit, &["sparse.gguf", "268435456 bytes of metadata"]));
    }
    // The most strings that the limit lets pass, all empty.
    let path = sparse(strings(), (1 << 25) - 8);
    let gguf = bounded(256 << 20, || Gguf::open(&path).unwrap());
    assert_eq!(gguf.metadata().strings("the.key").unwrap().map(StringArray::len), Some((1 << 25) - 8));
}

#[test]
fn errors_name_the_file() {
    let folder = Folder::new();
    let path = folder.path("cut.gguf");
    let bytes = sample().to_bytes();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    unopenable(&path, Status::Truncated, &["cut.gguf", "d.weight"]);
}

#[test]
fn g43_a_file_truncated_after_opening_is_an_error() {
    let folder = Folder::new();
    let path = folder.write("m.gguf", &sample());
    let gguf = Gguf::open(&path).unwrap();
    let last = gguf.tensor("d.weight").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(last.offset + 10).unwrap();
    let error = gguf.read_tensor(last, &mut [0; 64]).unwrap_err();
    assert_eq!(error.status(), Status::Truncated);
    let text = error.to_string();
    assert!(text.contains("m.gguf") && text.contains("d.weight") && text.contains("has 10"), "{text}");
}

#[test]
fn g43_a_file_replaced_after_opening_is_read_as_it_was() {
    let folder = Folder::new();
    let path = folder.write("m.gguf", &sample());
    let gguf = Gguf::open(&path).unwrap();
    fs::rename(folder.write("other.gguf", &Writer::new()), &path).unwrap();
    let mut data = vec![0; 32];
    gguf.read_tensor(gguf.tensor("a.weight").unwrap(), &mut data).unwrap();
    assert_eq!(data, (0..32).collect::<Vec<u8>>());
}

/// The keys of part `no` of three.
fn part(no: u16) -> Writer {
    let first = if no == 0 { Writer::new().pair("general.architecture", "llama") } else { Writer::new() };
    first.pair("split.no", Value::U16(no)).pair("split.count", Value::U16(3)).pair("split.tensors.count", Value::I32(4))
}

/// Part `no` of a model with four tensors in three files.
fn good_part(no: u16) -> Writer {
    match no {
        0 => part(0).tensor("a", &[8], QuantType::F32, vec![1; 32]),
        1 => part(1).tensor("b", &[8], QuantType::F32, vec![2; 32]).tensor("c", &[8], QuantType::F32, vec![3; 32]),
        _ => part(2).tensor("d", &[8], QuantType::F32, vec![4; 32]),
    }
}

const NAMES: [&str; 3] = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];

/// The three files, the last of them as given.
fn split(folder: &Folder, last: &Writer) -> [PathBuf; 3] {
    let [a, b, c] = NAMES;
    [folder.write(a, &good_part(0)), folder.write(b, &good_part(1)), folder.write(c, last)]
}

#[test]
fn a_split_model_opens_by_any_part() {
    let folder = Folder::new();
    for path in split(&folder, &good_part(2)) {
        let gguf = Gguf::open(&path).unwrap();
        let summary: Vec<_> = gguf.tensors().iter().map(|t| (t.name.as_str(), t.shard)).collect();
        assert_eq!(summary, [("a", 0), ("b", 1), ("c", 1), ("d", 2)]);
        assert_eq!(gguf.metadata().str("general.architecture").unwrap(), Some("llama"));
        assert_eq!(gguf.n_shards(), 3);
        for (name, byte) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
            let mut data = vec![0; 32];
            gguf.read_tensor(gguf.tensor(name).unwrap(), &mut data).unwrap();
            assert_eq!(data, [byte; 32]);
        }
    }
}

#[test]
fn g42_a_missing_or_renamed_part_is_named() {
    let folder = Folder::new();
    let [first, second, third] = split(&folder, &good_part(2));
    fs::remove_file(second).unwrap();
    unopenable(&first, Status::Io, &["m-00002-of-00003.gguf"]);
    unopenable(&third, Status::Io, &["m-00002-of-00003.gguf"]);
    let renamed = folder.path("model.gguf");
    fs::rename(&third, &renamed).unwrap();
    unopenable(&renamed, Status::BadFile, &["model.gguf", "part 3 of 3", "-00003-of-00003.gguf"]);
}

#[test]
fn g42_split_keys_of_the_wrong_type_or_range_are_refused() {
    let folder = Folder::new();
    let name = "m-00001-of-00003.gguf";
    let open = |no: Value, count: Value| {
        let path = folder.write(name, &Writer::new().pair("split.no", no).pair("split.count", count));
        unopenable(&path, Status::BadFile, &["split."]);
    };
    open(Value::U16(0), Value::from("3"));
    open(Value::U16(0), Value::F32(3.0));
    open(Value::U16(0), Value::I32(-3));
    open(Value::U16(0), Value::U32(1 << 16));
    open(Value::from("0"), Value::U16(3));
    open(Value::U16(3), Value::U16(3));
    unopenable(&folder.write(name, &Writer::new().pair("split.count", Value::U16(3))), Status::BadFile, &["split.no"]);
}

#[test]
fn g42_a_part_of_another_model_is_refused() {
    let folder = Folder::new();
    let refused = |last: Writer, words: &[&str]| unopenable(&split(&folder, &last)[0], Status::BadFile, words);
    let tensor = |writer: Writer, name| writer.tensor(name, &[8], QuantType::F32, vec![4; 32]);
    refused(good_part(1), &[NAMES[2], "part 3 of 3", "part 2 of 3"]);
    refused(sample(), &[NAMES[2], "part 3 of 3", "one file"]);
    refused(tensor(part(2), "a"), &[NAMES[2], "tensor a", "once"]);
    refused(tensor(part(2).pair("general.architecture", "gpt2"), "d"), &[NAMES[2], "architecture", "llama", "gpt2"]);
    refused(part(2), &[NAMES[0], "split.tensors.count", "4 tensors", "found 3"]);
    refused(tensor(good_part(2), "e"), &[NAMES[0], "split.tensors.count", "found 5"]);
    let other = Writer::new().pair("split.no", Value::U16(2)).pair("split.count", Value::U16(3));
    refused(tensor(other.pair("split.tensors.count", Value::I32(9)), "d"), &[NAMES[2], "split.tensors.count", "9"]);
}

#[test]
fn a_single_part_in_memory_is_refused_and_a_merged_file_loads() {
    refused(&good_part(0).to_bytes(), Status::BadFile, &["split.count", "one file"]);
    loads(&sample().pair("split.count", Value::U16(0)).pair("split.no", Value::U16(0)).to_bytes());
    loads(&sample().pair("split.count", Value::U16(1)).pair("split.no", Value::U16(0)).to_bytes());
}

#[test]
fn g41_opening_and_dropping_leaves_no_open_file() {
    let folder = Folder::new();
    let paths = split(&folder, &good_part(2));
    let open_below = || {
        let links =
            fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        links.filter(|target| target.starts_with(&folder.0)).count()
    };
    let gguf = Gguf::open(&paths[1]).unwrap();
    assert_eq!(open_below(), 3);
    drop(gguf);
    fs::write(&paths[2], b"GGUF").unwrap();
    unopenable(&paths[0], Status::Truncated, &[NAMES[2]]);
    assert_eq!(open_below(), 0);
}
