//! What happens to a text before the merges: the fields `normalizer`, `pre_tokenizer` and `post_processor`.

use serde_json::Value;

use super::reader::bad;
use crate::error::{Error, Result, quoted};
use crate::tokenizer::pretokenize::Step::{self, Scan};
use crate::tokenizer::pretokenize::scan;

/// Texts of more bytes are not parsed: no tokenizer comes near, and it bounds the memory.
const LONGEST: usize = 1 << 20;
/// Most parts of a sequence.
const MOST: usize = 16;

/// What is done to a text.
#[derive(Debug, Default)]
pub struct Pipeline {
    /// Characters are composed.
    pub nfc: bool,
    /// A space is put before it.
    pub prefix: bool,
    /// Spaces become U+2581.
    pub escaped: bool,
    /// Its bytes become characters of the vocabulary.
    pub byte_level: bool,
    /// How it is cut.
    pub steps: Vec<Step>,
}

type Scanner = fn(&str) -> usize;

/// Expressions that have a scanner, and whether nothing lies between their matches.
const KNOWN: &[(&str, Scanner, bool)] = &[
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        scan::llama3,
        true,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        scan::qwen2,
        true,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        scan::llama3_numbers,
        true,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        scan::qwen35,
        true,
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        scan::gpt4o,
        true,
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        scan::tekken,
        true,
    ),
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", scan::gpt2, true),
    (r"\p{N}{1,3}", scan::up_to_three_numbers, false),
    (r"\p{N}", scan::number, false),
    (r"[0-9][0-9][0-9]", scan::three_digits, false),
    ("[\r\n]", scan::newline, false),
    (r"\s?[!-/:-~！-／：-～‘-‟　-。]+", scan::marks_of_deepseek, false),
    ("[一-龥぀-ゟ゠-ヿ]+", scan::han_and_kana, false),
    ("[一-龥ࠀ-一가-퟿]+", scan::cjk, false),
    (r"\s?\p{L}+", scan::letters, false),
    (r"\s?\p{P}+", scan::punctuation, false),
    (
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        scan::deepseek3,
        false,
    ),
];

/// Parses the text of a field.
pub fn parse(field: &str, text: &str) -> Result<Value> {
    if text.len() > LONGEST {
        return Err(bad(field, format!("at most {LONGEST} bytes"), text.len()));
    }
    serde_json::from_str(text).map_err(|error| bad(field, "JSON", quoted(error.to_string().as_bytes())))
}

fn type_of(value: &Value) -> &str {
    value["type"].as_str().unwrap_or("no type")
}

fn unsupported(field: &'static str, value: &Value, known: &str) -> Error {
    let found = quoted(value.to_string().as_bytes());
    Error::UnsupportedTokenizer { field, found: found.trim_matches('"').to_string(), known: known.to_string() }
}

/// The parts of a sequence, `value` itself when it is none; nothing for `null`. Sequences in sequences are not known.
fn parts<'a>(field: &str, value: &'a Value, list: &str) -> Result<Vec<&'a Value>> {
    let parts = match (value, type_of(value)) {
        (Value::Null, _) => return Ok(Vec::new()),
        (_, "Sequence") => match value[list].as_array() {
            Some(parts) => parts.iter().collect(),
            None => return Err(bad(&format!("{field}.{list}"), "an array", &value[list])),
        },
        _ => vec![value],
    };
    if parts.len() > MOST { Err(bad(field, format!("at most {MOST} parts"), parts.len())) } else { Ok(parts) }
}

impl Pipeline {
    /// Reads `normalizer` and `pre_tokenizer`.
    ///
    /// # Errors
    /// [`Error::UnsupportedTokenizer`] for a part that is not known, showing it.
    pub fn read(normalizer: &Value, pre_tokenizer: &Value) -> Result<Pipeline> {
        let mut pipeline = Pipeline::default();
        for part in parts("normalizer", normalizer, "normalizers")? {
            match type_of(part) {
                "NFC" if !pipeline.escaped => pipeline.nfc = true,
                "Prepend" if part["prepend"] == "▁" && !pipeline.escaped => pipeline.prefix = true,
                "Replace" if part["pattern"]["String"] == " " && part["content"] == "▁" => pipeline.escaped = true,
                _ => {
                    let known = "NFC, Prepend of U+2581, Replace of a space by U+2581";
                    return Err(unsupported("tokenizer.json: normalizer", part, known));
                }
            }
        }
        for part in parts("pre_tokenizer", pre_tokenizer, "pretokenizers")? {
            // What comes after sees bytes as characters, so that only ASCII is what it was. Bytes that look like numbers are
            // cut too there, but no merge of a vocabulary that was trained that way goes across such a cut.
            let step = match type_of(part) {
                "Digits" if pipeline.byte_level && part["individual_digits"] != true => Some(Scan(scan::digits)),
                "Split" if pipeline.byte_level && part["pattern"]["Regex"] == "[0-9][0-9][0-9]" => {
                    split_step(part, false)?
                }
                _ if pipeline.byte_level => {
                    let known = "Digits and Split at [0-9][0-9][0-9] after ByteLevel";
                    return Err(unsupported("tokenizer.json: pre_tokenizer", part, known));
                }
                "ByteLevel" if part["add_prefix_space"] != true => {
                    pipeline.byte_level = true;
                    (part["use_regex"] != false).then_some(Scan(scan::gpt2))
                }
                "Digits" if part["individual_digits"] == true => Some(Scan(scan::number)),
                "Digits" => Some(Scan(scan::numbers)),
                "Punctuation" if part["behavior"] == "Contiguous" => Some(Scan(scan::marks_of_falcon)),
                "Split" => split_step(part, pipeline.escaped)?,
                _ => {
                    let known = "ByteLevel without add_prefix_space, Digits, Punctuation that is Contiguous, Split";
                    return Err(unsupported("tokenizer.json: pre_tokenizer", part, known));
                }
            };
            pipeline.steps.extend(step);
        }
        Ok(pipeline)
    }
}

/// The cut of a `Split`; none where it cuts at spaces and there are none left.
fn split_step(part: &Value, escaped: bool) -> Result<Option<Step>> {
    let refuse = |known| unsupported("tokenizer.json: pre_tokenizer", part, known);
    if escaped && part["pattern"]["String"] == " " {
        return Ok(None);
    }
    let Some(pattern) = part["pattern"]["Regex"].as_str() else {
        return Err(refuse("Split with pattern.Regex"));
    };
    let known = KNOWN.iter().find(|known| known.0 == pattern);
    match (part["behavior"].as_str(), part["invert"].as_bool()) {
        (Some("Isolated"), Some(false) | None) => {}
        // What lies between the matches is dropped; here nothing does.
        (Some("Removed"), Some(true)) if known.is_some_and(|known| known.2) => {}
        _ => return Err(refuse("Split with behavior \"Isolated\" that is not inverted")),
    }
    match known {
        Some(&(_, scanner, _)) => Ok(Some(Scan(scanner))),
        None if pattern == r"\s+$" => Ok(Some(Step::Find(scan::trailing_space))),
        None => Step::pattern(pattern).map(Some),
    }
}

/// The tokens that `post_processor` puts before and after a single text: BOS and EOS.
pub fn template(post_processor: &Value) -> (Option<&str>, Option<&str>) {
    let all = match post_processor["processors"].as_array() {
        Some(all) => all.as_slice(),
        None => std::slice::from_ref(post_processor),
    };
    let single =
        all.iter().find(|part| type_of(part) == "TemplateProcessing").and_then(|part| part["single"].as_array());
    let Some(single) = single else { return (None, None) };
    let special = |at: usize| single.get(at).and_then(|item| item["SpecialToken"]["id"].as_str());
    let Some(text) = single.iter().position(|item| item.get("Sequence").is_some()) else { return (None, None) };
    (text.checked_sub(1).and_then(special), special(text + 1))
}
