//! The parts of the headers that follow from tables: versions, statuses, finish reasons, options, facts, error codes.
//!
//! The rest of them is made from the exported functions and their descriptions, see `tests/c_api.rs`.

use super::boundary::NUL_TERMINATED;
use super::generation::{COUNTS, FINISH_REASONS, TIMES};
use super::library::{ABI_VERSION, VERSION};
use super::model::{self, Fact, NUMBERS, TEXTS};
use super::option_row::Reader;
use super::option_table::rows;
use super::settings::Settings;
use super::status::row;
use super::{device, log, metadata, tokens};
use crate::Status;
use std::fmt::Write;

/// Characters in a line of the header.
const WIDTH: usize = 118;

/// The first page of `kigo.h`: the conventions, as a C comment.
pub fn first_page() -> String {
    page(include_str!("mod.rs"))
}

/// The first page of `worker_ffi.h`.
#[cfg(feature = "worker-abi")]
pub fn worker_first_page() -> String {
    page(include_str!("worker.rs"))
}

/// What a source file says first, as a C comment.
fn page(source: &str) -> String {
    let page = source.lines().map_while(|line| line.strip_prefix("//!"));
    comment(page.map(|line| line.strip_prefix(' ').unwrap_or(line)))
}

/// The error codes of the worker functions, as a C enumeration.
#[cfg(feature = "worker-abi")]
pub fn worker_codes() -> String {
    let mut text = comment(["What the worker functions write to `*error_code`."]) + "typedef enum {\n";
    for (index, (name, number, meaning)) in super::worker::CODES.iter().enumerate() {
        let comma = if index + 1 < super::worker::CODES.len() { "," } else { "" };
        let _ = writeln!(text, "    /** {} */\n    {name} = {number}{comma}", meaning.to_string_lossy());
    }
    text + "} CudaErrorCode;\n"
}

/// What stands between the includes and the declarations.
pub fn definitions() -> String {
    let parts = [
        versions(),
        lengths(),
        statuses(),
        finish_reasons(),
        options(),
        option_keys(),
        facts(),
        special_tokens(),
        numbers("Flags of kigo_model_tokenize() and kigo_model_detokenize()", tokens::FLAGS),
        numbers("What kigo_model_token_attributes() returns", tokens::ATTRIBUTES),
        metadata_types(),
        numbers("Log: levels of messages", log::LEVELS),
    ];
    format!("\n{}", parts.join("\n"))
}

fn versions() -> String {
    let part = |name: &str, value: &str| format!("#define KIGO_VERSION_{name} {value}\n");
    let mut text = comment(["The version of this header; kigo_version() tells that of the library."]);
    text += &part("MAJOR", env!("CARGO_PKG_VERSION_MAJOR"));
    text += &part("MINOR", env!("CARGO_PKG_VERSION_MINOR"));
    text += &part("PATCH", env!("CARGO_PKG_VERSION_PATCH"));
    text += &part("STRING", &format!("\"{}\"", VERSION.to_string_lossy()));
    text.push('\n');
    text += &comment(["The binary interface of this header; kigo_abi_version() tells that of the library."]);
    text + &format!("#define KIGO_ABI_VERSION {ABI_VERSION}\n")
}

fn lengths() -> String {
    const { assert!(NUL_TERMINATED == usize::MAX) };
    comment(["As the length of a prompt: a NUL ends it."]) + "#define KIGO_NUL_TERMINATED SIZE_MAX\n"
}

fn statuses() -> String {
    let mut text = comment(["Statuses", "", "What each means, and what to do next."]);
    for status in Status::ALL {
        let (name, meaning, advice) = row(*status);
        let name = name.to_string_lossy();
        text += &comment([format!("{meaning} {advice}")]);
        text += &match *status as i32 {
            number @ 0.. => format!("#define {name} {number}\n"),
            number => format!("#define {name} ({number})\n"),
        };
    }
    text
}

fn finish_reasons() -> String {
    numbers("What kigo_inference_finish_reason() returns", FINISH_REASONS)
}

/// A section of numbers, each with its meaning.
fn numbers<const N: usize>(title: &str, table: [(&str, i32, &str); N]) -> String {
    let mut text = comment([title]);
    for (name, number, meaning) in table {
        text += &comment([meaning]);
        text += &format!("#define {name} {number}\n");
    }
    text
}

fn metadata_types() -> String {
    let mut text = comment(["Metadata: types of values, with the numbers that GGUF gives them"]);
    for (name, number) in metadata::TYPES {
        text += &format!("#define {name} {number}\n");
    }
    text
}

fn special_tokens() -> String {
    let mut lines = vec!["Special tokens".to_owned(), String::new(), "Keys of kigo_model_special_token():".to_owned()];
    add_facts(&mut lines, tokens::SPECIAL);
    comment(lines)
}

fn option_keys() -> String {
    let mut text = comment(["Keys of options, for compilers that check names"]);
    for row in rows() {
        text += &format!("#define KIGO_OPTION_{} \"{}\"\n", row.key.to_uppercase(), row.key);
    }
    text
}

fn options() -> String {
    let mut lines = vec![
        "Options".to_owned(),
        String::new(),
        "Keys of kigo_options_set_str(), kigo_options_set_i64() and kigo_options_set_f64(). Where a number is wanted, \
         an integer will do."
            .to_owned(),
        String::new(),
        "A model file may have defaults of its own for how tokens are chosen (general.sampling.*): they take the place of \
         those below, for options that are not set."
            .to_owned(),
    ];
    let settings = Settings::default();
    for (reader, function) in [
        (Reader::ModelLoad, "kigo_model_load() and kigo_load_start()"),
        (Reader::InferenceStart, "kigo_inference_start(), kigo_inference_fork() and kigo_inference_load()"),
    ] {
        lines.extend([String::new(), format!("Read by {function}:")]);
        for row in rows().filter(|row| row.reader == reader) {
            let (range, setter, default) = (row.range(), row.setter(), (row.show)(&settings));
            lines.push(String::new());
            lines.push(format!("  \"{}\": {range}; {setter}(); default: {default}", row.key));
            lines.push(format!("      {}", row.doc));
        }
    }
    comment(lines)
}

fn facts() -> String {
    let mut lines = vec!["Facts about a model".to_owned(), String::new(), "Keys of kigo_model_get_str():".to_owned()];
    add_facts(&mut lines, TEXTS);
    lines.extend([String::new(), "Keys of kigo_model_get_i64():".to_owned()]);
    add_facts(&mut lines, NUMBERS);
    lines.extend([String::new(), "Keys of kigo_model_get_f64():".to_owned()]);
    add_facts(&mut lines, model::TIMES);
    lines.extend([String::new(), "Facts about an inference".to_owned(), String::new()]);
    lines.push("Keys of kigo_inference_get_i64():".to_owned());
    add_facts(&mut lines, COUNTS);
    lines.extend([String::new(), "Keys of kigo_inference_get_f64():".to_owned()]);
    add_facts(&mut lines, TIMES);
    lines.extend([String::new(), "Facts about a GPU".to_owned(), String::new()]);
    lines.push("Keys of kigo_device_get_str():".to_owned());
    add_facts(&mut lines, device::TEXTS);
    lines.extend([String::new(), "Keys of kigo_device_get_i64():".to_owned()]);
    add_facts(&mut lines, device::NUMBERS);
    comment(lines)
}

fn add_facts<F>(lines: &mut Vec<String>, facts: &[Fact<F>]) {
    lines.extend(facts.iter().map(|fact| format!("  \"{}\": {}", fact.key, fact.doc)));
}

/// A C comment of these lines, wrapped with the indentation they begin with.
fn comment<L: AsRef<str>>(lines: impl IntoIterator<Item = L>) -> String {
    let mut text = String::from("/**\n");
    for line in lines {
        let line = line.as_ref();
        let words = line.trim_start();
        let indent = &line[..line.len() - words.len()];
        let mut row = format!(" * {indent}");
        let start = row.len();
        for word in words.split(' ') {
            if row.len() > start && row.len() + 1 + word.len() > WIDTH {
                let _ = writeln!(text, "{}", row.trim_end());
                row.truncate(start);
            }
            if row.len() > start {
                row.push(' ');
            }
            row.push_str(word);
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text + " */\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_wrapped_and_closed() {
        let text = comment(["    ".to_owned() + &"word ".repeat(60)]);
        assert!(text.starts_with("/**\n *     word word") && text.ends_with("\n */\n"));
        assert!(text.lines().all(|line| line.len() <= WIDTH));
        assert_eq!(text.matches("word").count(), 60);
    }

    #[test]
    fn no_text_closes_its_comment_early() {
        for text in [first_page(), definitions()] {
            assert_eq!(text.matches("/*").count(), text.matches("*/").count());
        }
    }

    #[test]
    fn finish_reasons_have_numbers_of_their_own() {
        for (index, (_, number, _)) in FINISH_REASONS.into_iter().enumerate() {
            assert_eq!(number, index as i32);
        }
    }
}
