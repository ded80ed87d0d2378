//! The same vocabularies as tokenizer.json, written as Hugging Face writes them, against the same goldens.

use std::path::PathBuf;

use serde_json::{Value as Json, json};

use super::*;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn split(regex: &str) -> Json {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn sequence(mut parts: Vec<Json>, use_regex: bool) -> Json {
    parts.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex}));
    json!({"type": "Sequence", "pretokenizers": parts})
}

/// What the tokenizer.json of a model says before its vocabulary.
fn pre_tokenizer(name: &str) -> Json {
    match name {
        "gpt-2" | "mpt" => sequence(vec![], true),
        "command-r" | "starcoder" => sequence(vec![json!({"type": "Digits", "individual_digits": true})], true),
        "falcon" => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            {"type": "Digits", "individual_digits": false},
            split("[0-9][0-9][0-9]"),
        ]}),
        "qwen2" => sequence(vec![split(&LLAMA3.replace("{1,3}", ""))], false),
        "llama-bpe" => sequence(vec![split(LLAMA3)], false),
        "gpt-4o" => sequence(vec![split(GPT4O)], false),
        _ => panic!("no pre-tokenizer for {name}"),
    }
}

/// The file of a byte-level model.
fn byte_level(name: &str, metadata: &Metadata) -> Json {
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let kinds = metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (mut vocab, mut added) = (serde_json::Map::new(), Vec::new());
    for (id, (token, kind)) in tokens.iter().zip(kinds.iter()).enumerate() {
        if *kind == 1 {
            vocab.insert(text(token), id.into());
        } else {
            added.push(
                json!({"id": id, "content": text(token), "special": *kind != 4, "lstrip": false, "rstrip": false}),
            );
        }
    }
    let merges = metadata.strings("tokenizer.ggml.merges").unwrap().unwrap();
    let merges: Vec<Json> = match name {
        "gpt-2" => merges.iter().map(|merge| text(merge).into()).collect(),
        _ => merges.iter().map(|merge| text(merge).split(' ').collect::<Vec<_>>().into()).collect(),
    };
    let nfc = matches!(name, "qwen2" | "command-r" | "mpt");
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": if nfc { json!({"type": "NFC"}) } else { Json::Null },
        "pre_tokenizer": pre_tokenizer(name),
        "post_processor": null, "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": name == "llama-bpe",
            "vocab": vocab, "merges": merges,
        },
    })
}

fn read(json: &Json, metadata: &Metadata) -> kigo::Result<Tokenizer> {
    let n_vocab = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().len();
    Tokenizer::from_json(json.to_string().as_bytes(), metadata, n_vocab)
}

#[test]
fn byte_level_goldens() {
    for name in ["gpt-2", "qwen2", "llama-bpe", "gpt-4o", "falcon", "command-r", "mpt", "starcoder"] {
        let Some(metadata) = metadata_of(name) else { continue };
        let json = byte_level(name, &metadata).to_string();
        let n_vocab = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().len();
        let start = Instant::now();
        let tokenizer = Tokenizer::from_json(json.as_bytes(), &metadata, n_vocab).unwrap();
        println!("{name}: {} bytes in {:?}", json.len(), start.elapsed());
        compare(name, &tokenizer);
        let own = Tokenizer::from_gguf(&metadata).unwrap();
        let ids = |t: &Tokenizer| (t.bos(), t.eos(), t.eog().to_vec(), t.n_vocab(), t.max_token_bytes(), t.add_bos());
        if name != "llama-bpe" && name != "gpt-4o" {
            assert_eq!(ids(&tokenizer), ids(&own), "{name}");
        }
    }
}

#[test]
fn t04_long_texts_take_less_than_two_seconds() {
    for name in ["gpt-2", "llama-bpe", "gpt-4o"] {
        let Some(metadata) = metadata_of(name) else { continue };
        compare_long(name, &read(&byte_level(name, &metadata), &metadata).unwrap());
    }
}

/// An expression that kigo has no scanner for, which says the same in other words.
#[cfg(feature = "regex")]
#[test]
fn other_expressions_are_run() {
    let Some(metadata) = metadata_of("llama-bpe") else { return };
    let mut json = byte_level("llama-bpe", &metadata);
    json["pre_tokenizer"] = sequence(vec![split(&format!("(?:{LLAMA3})"))], false);
    let tokenizer = read(&json, &metadata).unwrap();
    compare("llama-bpe", &tokenizer);
    for name in ["A", "caret", "cjk", "spaces", "spaces and a letter", "newlines", "letters", "mixed"] {
        let text = long_text(name);
        let start = Instant::now();
        // The engine may give up on a million spaces; the text is never lost.
        match tokenizer.encode(&text, PLAIN) {
            Ok(ids) => assert_eq!(tokenizer.decode(&ids, false).unwrap(), text.as_bytes(), "{name}"),
            Err(error) => assert!(error.to_string().contains("pre_tokenizer"), "{name}: {error}"),
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{name} took {:?}", start.elapsed());
    }
    json["pre_tokenizer"] = sequence(vec![split(r"(?:(a|aa)+)(?=b)\1")], false);
    let error = read(&json, &metadata).unwrap().encode(&"a".repeat(100_000), PLAIN).unwrap_err().to_string();
    assert!(error.contains("pre_tokenizer") && error.contains("comes to an end"), "{error}");
}

/// SentencePiece as Llama 2 has it: merges in the order in which the converter of transformers writes them.
#[test]
fn sentencepiece_golden() {
    let Some(metadata) = metadata_of("llama-spm") else { return };
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let scores = metadata.f32s("tokenizer.ggml.scores").unwrap().unwrap();
    let kinds = metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    let tokens: Vec<&str> = tokens.iter().map(|token| std::str::from_utf8(token).unwrap()).collect();
    let ids: std::collections::HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, &token)| (token, id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|&(id, _)| kinds[id] == 1) {
        for (at, _) in token.char_indices().skip(1) {
            if let (Some(&left), Some(&right)) = (ids.get(&token[..at]), ids.get(&token[at..])) {
                merges.push((-scores[id], left, right));
            }
        }
    }
    merges.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let merges: Vec<_> = merges.iter().map(|&(_, left, right)| [tokens[left], tokens[right]]).collect();
    let added = |id: usize| json!({"id": id, "content": tokens[id], "special": true});
    let mut json = json!({
        "added_tokens": [added(0), added(1), added(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": ids, "merges": merges},
    });
    let tokenizer = read(&json, &metadata).unwrap();
    compare("llama-spm", &tokenizer);
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.unknown(), tokenizer.add_bos()),
        (Some(1), Some(2), Some(0), true)
    );
    // Without a word of the GGUF file the template says what begins a text.
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), &Metadata::new(), tokens.len() + 64).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.add_bos(), tokenizer.eog()), (Some(1), true, &[2][..]));
    assert_eq!(tokenizer.encode("", ADDED).unwrap(), [1]);
    assert_eq!((tokenizer.n_vocab(), tokenizer.token_bytes(32_050, true)), (32_064, &b""[..]));
    json["normalizer"] = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    json["pre_tokenizer"] =
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    assert!(!read(&json, &metadata).unwrap().adds_space_prefix());
}

/// Bytes `a` to `d`, `ab`, and a control token.
fn tiny() -> Json {
    json!({
        "added_tokens": [{"id": 5, "content": "<|im_end|>", "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4}, "merges": [["a", "b"]]},
    })
}

/// The message of the refusal, which is a line of printable ASCII.
fn error_of(json: &str, n_vocab: usize) -> String {
    let text = Tokenizer::from_json(json.as_bytes(), &Metadata::new(), n_vocab).unwrap_err().to_string();
    assert!(text.len() <= 512 && text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text:?}");
    text
}

#[test]
fn text_makes_no_control_tokens() {
    let tokenizer = Tokenizer::from_json(tiny().to_string().as_bytes(), &Metadata::new(), 8).unwrap();
    assert_eq!(tokenizer.encode("abab<|im_end|>", PARSED).unwrap(), [4, 4, 5]);
    assert!(!tokenizer.encode("ab<|im_end|>", PLAIN).unwrap().contains(&5));
    assert_eq!((tokenizer.eot(), tokenizer.eog(), tokenizer.n_vocab()), (Some(5), &[5][..], 8));
    assert_eq!(tokenizer.decode(&[4, 5, 6, 7, 9], false).unwrap(), b"ab");
}

#[test]
fn broken_files_are_refused_by_the_field() {
    assert!(error_of("", 8).starts_with("tokenizer.json: the file: expected an object"));
    let whole = tiny().to_string();
    assert!(Tokenizer::from_json(whole.as_bytes(), &Metadata::new(), 6).is_ok());
    for cut in (0..whole.len()).filter(|&cut| whole.is_char_boundary(cut)) {
        let error = error_of(&whole[..cut], 6);
        assert!(error.starts_with("tokenizer.json: "), "{error}");
    }
    assert!(error_of(&format!("{whole}x"), 6).contains("nothing after the object"));
    let no_utf8 = Tokenizer::from_json(b"{\"model\": \"\xff\"}", &Metadata::new(), 6).unwrap_err();
    assert_eq!(no_utf8.to_string(), "tokenizer.json: the file: expected UTF-8, found an invalid byte at 11");
    let set = |pointer: &str, value: Json| {
        let mut json = tiny();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[key] = value;
        error_of(&json.to_string(), 6)
    };
    for (pointer, value, expected) in [
        ("/model/vocab", json!({"a": 6}), r#"tokenizer.json: model.vocab["a"]: expected an id below 6"#),
        ("/model/vocab", json!({"a": 0, "b": 0}), r#"tokenizer.json: model.vocab["b"]: expected an id of its own"#),
        ("/model/vocab", json!({"a": -1}), "tokenizer.json: model.vocab: expected an integer"),
        ("/model/vocab", json!({"a": "x"}), "tokenizer.json: model.vocab: expected an integer"),
        ("/model/vocab", json!([]), "tokenizer.json: model.vocab: expected an object"),
        ("/model/merges", json!({}), "tokenizer.json: model.merges: expected an array"),
        ("/model/merges", json!([1]), "tokenizer.json: model.merges: expected an array"),
        ("/model/merges", json!([["a"]]), "tokenizer.json: model.merges[0]: expected two tokens"),
        ("/model/merges", json!(["a b", ["a", "b"]]), "tokenizer.json: model.merges[1]: expected the form"),
        ("/model/merges", json!(["a b", "b a"]), "tokenizer.json: model.merges[1]: expected two tokens"),
        ("/model/merges", json!(["ab"]), "tokenizer.json: model.merges[0]: expected two tokens"),
        ("/model/type", json!("Unigram"), "tokenizer.json: model.type: \"Unigram\" is not supported; known: BPE"),
        ("/model/type", json!(5), "tokenizer.json: model.type: expected a string"),
        ("/model/dropout", json!(0.1), "tokenizer.json: model: \"dropout 0.1\" is not supported"),
        ("/model/ignore_merges", json!(1), "tokenizer.json: model.ignore_merges: expected true or false"),
        ("/model", json!(null), "tokenizer.json: model: expected an object"),
        (
            "/added_tokens",
            json!([{"id": 6, "content": "x"}]),
            "tokenizer.json: added_tokens[0].id: expected an id below 6",
        ),
        ("/added_tokens", json!([{"content": "x"}]), "tokenizer.json: added_tokens[0].id: expected an id"),
        ("/added_tokens", json!([{"id": 1, "lstrip": true}]), "tokenizer.json: added_tokens: "),
        ("/normalizer", json!({"type": "Lowercase"}), "tokenizer.json: normalizer: "),
        ("/normalizer", json!("NFC"), "tokenizer.json: normalizer: "),
        ("/normalizer", json!({"type": "Prepend", "prepend": "é\n"}), "tokenizer.json: normalizer: "),
        ("/pre_tokenizer", sequence(vec![split("é(\n")], true), "tokenizer.json: pre_tokenizer: "),
        ("/pre_tokenizer", json!({"type": "Metaspace"}), "tokenizer.json: pre_tokenizer: "),
        ("/pre_tokenizer", json!(null), "tokenizer.json: pre_tokenizer: "),
        (
            "/pre_tokenizer",
            sequence(vec![json!({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Removed"})], true),
            "tokenizer.json: pre_tokenizer: ",
        ),
        ("/pre_tokenizer", sequence(vec![split("(")], true), "tokenizer.json: pre_tokenizer: "),
        ("/pre_tokenizer", sequence(vec![split(&"(".repeat(50_000))], true), "tokenizer.json: pre_tokenizer: "),
        (
            "/pre_tokenizer",
            sequence(vec![split("a"); 16], true),
            "tokenizer.json: pre_tokenizer: expected at most 16 parts",
        ),
    ] {
        let error = set(pointer, value);
        assert!(error.starts_with(expected), "{pointer}: {error}");
    }
}

#[test]
fn a_hundred_megabytes_of_nesting_are_skipped_or_refused() {
    let deep = "[".repeat(100 << 20);
    let start = Instant::now();
    assert!(error_of(&deep, 6).starts_with("tokenizer.json: the file: expected an object"));
    for field in ["x", "normalizer", "pre_tokenizer"] {
        assert!(error_of(&format!(r#"{{"{field}": {deep}"#), 6).contains(field));
    }
    let nested = format!(r#"{{"normalizer": {}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(error_of(&nested, 6).starts_with("tokenizer.json: normalizer: expected JSON"));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("kigo-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The file's own vocabulary counts, unless a tokenizer.json is named, or the file's is not known and one lies beside it.
#[test]
fn the_vocabulary_of_the_file_counts_first() {
    let folder = Folder::new("tokenizer-json");
    let (model, beside) = (folder.0.join("model.gguf"), folder.0.join("tokenizer.json"));
    let mut own = Metadata::new();
    for (key, value) in tiny_bpe() {
        own.insert(key, value).unwrap();
    }
    let unknown = replaced(&own, "tokenizer.ggml.pre", Value::from("youtu"));
    let missing = replaced(&own, "tokenizer.ggml.pre", None);
    let bare = replaced(&replaced(&own, "tokenizer.ggml.model", None), "tokenizer.ggml.bos_token_id", None);
    let n_vocab = 262;
    let choose = |metadata: &Metadata, wanted: &str| Tokenizer::choose(&model, metadata, n_vocab, wanted);
    assert!(matches!(choose(&unknown, "auto"), Err(Error::UnsupportedTokenizer { .. })));
    assert!(choose(&missing, "auto").unwrap_err().to_string().contains("tokenizer.json"));
    std::fs::write(&beside, tiny().to_string()).unwrap();
    let ids = |metadata: &Metadata, wanted: &str| choose(metadata, wanted).unwrap().encode("ab", PLAIN).unwrap();
    assert_eq!(ids(&own, "auto"), [256]);
    assert_eq!(ids(&unknown, "auto"), [4]);
    assert_eq!(ids(&missing, "auto"), [4]);
    assert_eq!(ids(&bare, "auto"), [4]);
    assert_eq!(ids(&own, beside.to_str().unwrap()), [4]);
    let error = choose(&own, folder.0.join("none.json").to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("none.json") && error.contains("cannot open"), "{error}");
    assert!(choose(&own, folder.0.to_str().unwrap()).is_err());
    let huge = std::fs::File::create(folder.0.join("huge.json")).unwrap();
    huge.set_len((128 << 20) + 1).unwrap();
    let error = choose(&own, folder.0.join("huge.json").to_str().unwrap()).unwrap_err().to_string();
    assert!(error.contains("huge.json") && error.contains("limit reached"), "{error}");
    std::fs::write(&beside, "{").unwrap();
    let error = choose(&unknown, "auto").unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: the file: expected a string"), "{error}");
}

/// Every request of 4 KiB or more fails once; what is refused comes back as an error.
#[test]
fn running_out_of_memory_is_an_error() {
    let Some(metadata) = metadata_of("starcoder") else { return };
    let json = byte_level("starcoder", &metadata).to_string();
    for after in 0.. {
        let body = || Tokenizer::from_json(json.as_bytes(), &metadata, 49_152);
        let (result, refused) = alloc::refusing(4096, after, body);
        if refused == 0 {
            assert!(result.is_ok() && after > 0);
            return;
        }
        assert!(matches!(result, Err(Error::OutOfMemory { .. })), "request {after}: {:?}", result.err());
    }
}
