//! Pre-tokenizers: they cut a text into the pieces inside which byte-pair merging happens.
//!
//! Model makers define them as regular expressions. A backtracking engine overflows its stack on a million spaces,
//! so here each is a small scanner that looks at every character a bounded number of times (`scan.rs`). `\s` is
//! Unicode's White_Space, `\p{L}` and the like are its general categories (`class.rs`). To add a pre-tokenizer, write
//! its scanners from these parts and add a row to [`FAMILIES`].
//!
//! Where llama.cpp and the tokenizers of Hugging Face differ, Hugging Face counts: llama.cpp takes every letter that is not
//! ASCII for a small and a capital one in `gpt-4o` and `tekken`, leaves marks out of their words, and does not compose
//! characters (`nfc`). `default` is llama.cpp's own.

mod class;
mod deepseek;
#[cfg(feature = "regex")]
mod pattern;
pub mod scan;

use std::time::Instant;

#[cfg(not(feature = "regex"))]
use crate::error::Error;
use crate::error::Result;
use deepseek::cased_letters;
use scan::{
    cjk, deepseek3, gpt2, gpt4o, han_and_kana, letters, llama3, llama3_numbers, marks_of_deepseek, marks_of_default,
    marks_of_falcon, newline, number, numbers, punctuation, qwen2, qwen35, tekken, three_digits, trailing_space,
    up_to_three_numbers,
};

/// One cut through a text: at its matches.
#[derive(Debug, Clone)]
pub enum Step {
    /// Gives the bytes of the match at the start of a text, 0 when there is none.
    Scan(fn(&str) -> usize),
    /// Gives where the next match in a text begins and ends.
    Find(fn(&str) -> Option<(usize, usize)>),
    /// A regular expression.
    #[cfg(feature = "regex")]
    Pattern(Box<pattern::Pattern>),
}

use Step::{Find, Scan};

impl Step {
    /// The cut at the matches of a regular expression.
    ///
    /// # Errors
    /// [`Error::BadFile`] when it does not compile, [`Error::UnsupportedTokenizer`] in a build without such expressions.
    pub fn pattern(pattern: &str) -> Result<Step> {
        #[cfg(feature = "regex")]
        return pattern::Pattern::new(pattern).map(|pattern| Step::Pattern(Box::new(pattern)));
        #[cfg(not(feature = "regex"))]
        return Err(Error::UnsupportedTokenizer {
            field: "tokenizer.json: pre_tokenizer",
            found: crate::error::quoted(pattern.as_bytes()).trim_matches('"').to_string(),
            known: "the expressions of the families; build with the feature regex for others".to_string(),
        });
    }

    /// Calls `found` with where each match in `text` begins and ends.
    fn each(&self, text: &str, began: Instant, mut found: impl FnMut(usize, usize) -> Result<()>) -> Result<()> {
        let mut at = 0;
        #[cfg(not(feature = "regex"))]
        let _ = began;
        match self {
            Scan(scan) => {
                while let Some(c) = text[at..].chars().next() {
                    let len = scan(&text[at..]);
                    if len > 0 {
                        found(at, at + len)?;
                    }
                    at += if len > 0 { len } else { c.len_utf8() };
                }
            }
            Find(find) => {
                while let Some((start, end)) = find(&text[at..]) {
                    found(at + start, at + end)?;
                    at += end;
                }
            }
            #[cfg(feature = "regex")]
            Step::Pattern(pattern) => pattern.each(text, began, found)?,
        }
        Ok(())
    }
}

/// Pre-tokenizers that cut alike.
#[derive(Debug)]
pub struct Family {
    /// Values of `tokenizer.ggml.pre`.
    pub names: &'static [&'static str],
    /// Each cuts what the one before it left: its matches, and the text between them.
    pub steps: &'static [Step],
    /// A piece that is a token as a whole becomes that token without merging.
    pub ignore_merges: bool,
    /// Whether BOS is added when the file does not say.
    pub add_bos: bool,
    /// Characters are composed first (Unicode NFC).
    pub nfc: bool,
}

/// What most families are.
const PLAIN: Family = Family { names: &[], steps: &[], ignore_merges: false, add_bos: false, nfc: false };

/// Every pre-tokenizer. Names in one row are those that llama.cpp treats as one, but for `nfc`, which it has not: that is
/// said of those whose tokenizer.json has it.
pub const FAMILIES: &[Family] = &[
    Family {
        names: &["gpt-2", "a.x-4.0", "exaone4", "gigachat", "granite-docling", "jais", "mellum", "phi-2", "trillion"],
        steps: &[Scan(gpt2)],
        ..PLAIN
    },
    Family { names: &["mpt", "olmo"], steps: &[Scan(gpt2)], nfc: true, ..PLAIN },
    Family {
        names: &["smollm", "codeshell", "exaone", "mellum2", "minerva-7b", "refact", "starcoder"],
        steps: &[Scan(number), Scan(gpt2)],
        ..PLAIN
    },
    Family { names: &["command-r"], steps: &[Scan(number), Scan(gpt2)], nfc: true, ..PLAIN },
    Family { names: &["qwen2"], steps: &[Scan(qwen2)], nfc: true, ..PLAIN },
    Family {
        names: &["deepseek-r1-qwen", "f2llmv2", "grok-2", "hunyuan", "kormo", "megrez", "solar-open", "stablelm2"],
        steps: &[Scan(qwen2)],
        ..PLAIN
    },
    Family { names: &["qwen35"], steps: &[Scan(qwen35)], nfc: true, ..PLAIN },
    Family {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon-h1",
            "falcon3",
            "jina-v5-nano",
            "lfm2",
            "midm-2.0",
            "pixtral",
        ],
        steps: &[Scan(llama3)],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Family { names: &["chatglm-bpe", "dbrx", "smaug-bpe"], steps: &[Scan(llama3)], ..PLAIN },
    Family { names: &["glm4", "glm5"], steps: &[Scan(llama3)], ignore_merges: true, ..PLAIN },
    Family {
        names: &["minicpm5"],
        steps: &[Scan(up_to_three_numbers), Scan(llama3_numbers)],
        ignore_merges: true,
        ..PLAIN
    },
    Family { names: &["gpt-4o", "kanana2", "llama4", "minimax-m2", "talkie"], steps: &[Scan(gpt4o)], ..PLAIN },
    Family { names: &["tekken"], steps: &[Scan(tekken)], ignore_merges: true, add_bos: true, ..PLAIN },
    Family { names: &["falcon"], steps: &[Scan(marks_of_falcon), Scan(gpt2), Scan(three_digits)], ..PLAIN },
    Family {
        names: &["default"],
        steps: &[Scan(marks_of_default), Scan(gpt2), Scan(numbers), Scan(three_digits)],
        ..PLAIN
    },
    Family {
        names: &["deepseek-llm"],
        steps: &[
            Scan(newline),
            Scan(cased_letters),
            Scan(marks_of_deepseek),
            Find(trailing_space),
            Scan(cjk),
            Scan(number),
        ],
        ..PLAIN
    },
    Family {
        names: &["deepseek-coder"],
        steps: &[Scan(newline), Scan(letters), Scan(punctuation), Scan(cjk), Scan(number)],
        ..PLAIN
    },
    Family {
        names: &["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"],
        steps: &[Scan(up_to_three_numbers), Scan(han_and_kana), Scan(deepseek3)],
        ..PLAIN
    },
];

impl Family {
    /// The family with this name.
    pub fn named(name: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.names.contains(&name))
    }

    /// The first name of each family, for messages, which are short.
    pub fn known() -> String {
        let names: Vec<_> = FAMILIES.iter().filter_map(|family| family.names.first()).copied().collect();
        format!("{}, and those that cut like one of these", names.join(", "))
    }
}

/// Calls `piece` with what `steps` leave of `text`, in order; together they are the text, which was `began` then.
pub fn split<'t>(
    steps: &[Step],
    text: &'t str,
    began: Instant,
    piece: &mut dyn FnMut(&'t str) -> Result<()>,
) -> Result<()> {
    let Some((step, later)) = steps.split_first() else {
        return piece(text);
    };
    let mut at = 0;
    step.each(text, began, |start, end| {
        if at < start {
            split(later, &text[at..start], began, piece)?;
        }
        at = end;
        split(later, &text[start..end], began, piece)
    })?;
    if at < text.len() { split(later, &text[at..], began, piece) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        let push = &mut |piece| {
            pieces.push(piece);
            Ok(())
        };
        split(Family::named(name).unwrap().steps, text, Instant::now(), push).unwrap();
        pieces
    }

    #[test]
    fn names_are_unique() {
        let names: Vec<_> = FAMILIES.iter().flat_map(|family| family.names).collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[i + 1..].contains(name), "{name}");
        }
    }

    #[test]
    fn gpt2_joins_one_space_to_a_word() {
        assert_eq!(
            pieces("gpt-2", "I'll  see\n\n x12 !?'S"),
            ["I", "'ll", " ", " see", "\n\n", " x", "12", " !?'", "S"]
        );
        assert_eq!(pieces("gpt-2", "a \u{3000}\u{a0}"), ["a", " \u{3000}\u{a0}"]);
        assert_eq!(pieces("gpt-2", ""), [""; 0]);
    }

    #[test]
    fn smollm_sees_the_end_of_the_text_before_a_digit() {
        assert_eq!(pieces("smollm", "a  12\u{0b2}b"), ["a", "  ", "1", "2", "\u{b2}", "b"]);
    }

    #[test]
    fn llama3_keeps_newlines_with_what_precedes_them() {
        assert_eq!(
            pieces("llama-bpe", "he'LL\tx \r\n \n  1234 =>\r\n\ty"),
            ["he", "'LL", "\tx", " \r\n \n", " ", " ", "123", "4", " =>\r\n", "\ty"]
        );
        assert_eq!(pieces("llama-bpe", "it'\u{17f}x'Sx"), ["it", "'\u{17f}", "x", "'S", "x"]);
        assert_eq!(pieces("qwen2", "1234"), ["1", "2", "3", "4"]);
    }

    #[test]
    fn gpt4o_cuts_words_where_a_capital_follows_a_small_letter() {
        assert_eq!(
            pieces("gpt-4o", "HTTPServer camelCase DON'Ts-ǅ A中B e\u{301}F 1234 a/\n//b"),
            [
                "HTTPServer",
                " camel",
                "Case",
                " DON'T",
                "s",
                "-ǅ",
                " A中",
                "B",
                " e\u{301}",
                "F",
                " ",
                "123",
                "4",
                " a",
                "/\n//",
                "b"
            ]
        );
        assert_eq!(pieces("gpt-4o", "\u{301}AB \u{301}1"), ["\u{301}", "AB", " \u{301}", "1"]);
        assert_eq!(pieces("tekken", "we'll GPT4 12"), ["we", "'ll", " GPT", "4", " ", "1", "2"]);
    }

    #[test]
    fn qwen35_keeps_marks_in_words() {
        assert_eq!(pieces("qwen35", "e\u{301}a !\u{301}b"), ["e\u{301}a", " !", "\u{301}b"]);
        assert_eq!(pieces("qwen2", "e\u{301}a"), ["e", "\u{301}a"]);
    }

    #[test]
    fn falcon_and_default_cut_at_punctuation_first() {
        assert_eq!(pieces("falcon", "a`b 12345, it's"), ["a", "`", "b", " ", "123", "45", ",", " it", "'", "s"]);
        assert_eq!(pieces("default", "a`b 12345"), ["a", "`", "b", " ", "123", "45"]);
        assert_eq!(pieces("default", "1.`"), ["1", ".", "`"]);
        assert_eq!(pieces("falcon", "1.`"), ["1", ".`"]);
    }

    #[test]
    fn deepseek_cuts_in_six_steps() {
        assert_eq!(
            pieces("deepseek-llm", "Ab ЖЗ\tx\r\n  (中文가)12  "),
            ["Ab", " ЖЗ", "\tx", "\r", "\n", " ", " (", "中文가", ")", "1", "2", "  "]
        );
        assert_eq!(pieces("deepseek-coder", " x_1\n"), [" x", "_", "1", "\n"]);
        assert_eq!(
            pieces("deepseek-v3", "x .foo 1234中ア\u{301}!\n"),
            ["x", " .", "foo", " ", "123", "4", "中ア", "\u{301}", "!\n"]
        );
    }
}
