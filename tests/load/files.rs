//! Paths, damaged files, models in several files, and templates that do not compile.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;

#[test]
fn paths_g41() {
    let folder = Folder::new();
    let missing = load_path(&folder.path("missing.gguf")).err().unwrap();
    check_error(&missing, Status::Io, &["missing.gguf", "open"]);
    let directory = load_path(&folder.path("")).err().unwrap();
    check_error(&directory, Status::Io, &["is a directory"]);
    check_error(&load_path(Path::new("")).err().unwrap(), Status::Io, &["open"]);

    let bytes = OsStr::from_bytes(b"m\xff\xfe \n.gguf");
    let path = folder.path("").join(bytes);
    std::fs::copy(models::data("tiny-llama.gguf"), &path).unwrap();
    assert_eq!(answer(&load_path(&path).unwrap(), QUESTION).unwrap(), HAIKU);
    std::fs::write(&path, b"GGUF").unwrap();
    let error = load_path(&path).err().unwrap();
    assert_eq!(error.status(), Status::Truncated);
    assert!(!error.to_string().contains('\n'));
}

#[test]
fn files_that_end_early() {
    let folder = Folder::new();
    let path = folder.path("model.gguf");
    let whole = std::fs::read(models::data("tiny-llama.gguf")).unwrap();
    for len in [0, 3, 24, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        std::fs::write(&path, &whole[..len]).unwrap();
        let error = load_path(&path).err().unwrap();
        check_error(&error, Status::Truncated, &["model.gguf", "fetch the file again"]);
    }
    std::fs::write(&path, [whole.as_slice(), b"more"].concat()).unwrap();
    assert_eq!(answer(&load_path(&path).unwrap(), QUESTION).unwrap(), HAIKU);
}

/// The tensors dealt out to three files.
fn parts() -> Vec<Draft> {
    let whole = Draft::tiny();
    let n_tensors = whole.tensors.len() as i32;
    let mut parts: Vec<Draft> = (0..3)
        .map(|no| Draft { pairs: if no == 0 { whole.pairs.clone() } else { Vec::new() }, tensors: Vec::new() })
        .enumerate()
        .map(|(no, draft)| {
            let draft = draft.with("split.no", Value::U16(no as u16)).with("split.count", Value::U16(3));
            draft.with("split.tensors.count", Value::I32(n_tensors))
        })
        .collect();
    for (i, tensor) in whole.tensors.into_iter().enumerate() {
        parts[i % 3].tensors.push(tensor);
    }
    parts
}

fn name(no: usize) -> String {
    format!("tiny-{:05}-of-00003.gguf", no + 1)
}

fn write_parts(folder: &Folder, parts: &[Draft]) {
    parts.iter().enumerate().for_each(|(no, part)| drop(folder.write(&name(no), &part.writer())));
}

#[test]
fn a_model_in_several_files_is_the_same_model() {
    let folder = Folder::new();
    write_parts(&folder, &parts());
    let whole = load(&Draft::tiny());
    for no in 0..3 {
        let engine = load_path(&folder.path(&name(no))).unwrap();
        assert_eq!(engine.weight_bytes(), whole.weight_bytes());
        assert_eq!(logits(&engine, &TOKENS, 40), logits(&whole, &TOKENS, 40));
        assert_eq!(answer(&engine, QUESTION).unwrap(), HAIKU);
    }
}

#[test]
fn a_bad_part_is_named_g42() {
    let folder = Folder::new();
    write_parts(&folder, &parts());
    let last = folder.path(&name(2));
    let whole = std::fs::read(&last).unwrap();
    std::fs::write(&last, &whole[..whole.len() - 1]).unwrap();
    let refused =
        |status, words: &[&str]| check_error(&load_path(&folder.path(&name(0))).err().unwrap(), status, words);
    refused(Status::Truncated, &[&name(2)]);
    std::fs::remove_file(&last).unwrap();
    refused(Status::Io, &[&name(2), "open"]);
    let mut other = parts();
    other[2].tensors.pop();
    write_parts(&folder, &other);
    refused(Status::BadFile, &["split.tensors.count", "21", "20"]);
    let mut doubled = parts();
    doubled[2].tensors[0] = doubled[0].tensors[0].clone();
    write_parts(&folder, &doubled);
    refused(Status::BadFile, &[&name(2), "token_embd.weight"]);
}

#[test]
fn a_bad_template_concerns_only_those_who_use_it_g39_g40() {
    const KEY: &str = "tokenizer.chat_template";
    let plain = Prompt::Text("spring, summer, ");
    let expected = answer(&load(&Draft::tiny()), plain).unwrap();
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(6000), ")".repeat(6000));
    let calls_itself = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}";
    for template in [
        "{% for message in messages %}",
        "{{ messages[0].nothing.more }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('true') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception('no system role') }}",
        &nested,
        calls_itself,
        endless,
    ] {
        let engine = load(&Draft::tiny().with(KEY, template));
        let started = time::cpu();
        for _ in 0..2 {
            for prompt in [QUESTION, Prompt::Chat(r#"[{"role": "user", "content": "Hi"}]"#)] {
                let error = answer(&engine, prompt).expect_err(template);
                assert_eq!(error.status(), Status::BadTemplate, "{error}");
            }
        }
        assert!(time::cpu() - started < Duration::from_secs(4), "{template:.60}");
        assert_eq!(answer(&engine, plain).unwrap(), expected);
    }
    let none = load(&Draft::tiny().without(KEY));
    let error = answer(&none, QUESTION).unwrap_err();
    check_error(&error, Status::BadTemplate, &[KEY, "prompt_format=text"]);
}
