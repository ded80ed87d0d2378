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
mod scan;

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
}

use Step::{Find, Scan};

impl Step {
    /// Where the first match in `text` from byte `at` on begins and ends.
    fn next(&self, text: &str, at: usize) -> Result<Option<(usize, usize)>> {
        let rest = &text[at..];
        Ok(match self {
            Scan(scan) => rest
                .char_indices()
                .map(|(skip, _)| (at + skip, scan(&rest[skip..])))
                .find(|&(_, len)| len > 0)
                .map(|(start, len)| (start, start + len)),
            Find(find) => find(rest).map(|(start, end)| (at + start, at + end)),
        })
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

    /// The names of all families, for messages.
    pub fn known() -> String {
        FAMILIES.iter().flat_map(|family| family.names).copied().collect::<Vec<_>>().join(", ")
    }
}

/// Calls `piece` with what `steps` leave of `text`, in order; together they are the text.
pub fn split<'t>(steps: &[Step], text: &'t str, piece: &mut dyn FnMut(&'t str) -> Result<()>) -> Result<()> {
    let Some((step, later)) = steps.split_first() else {
        return piece(text);
    };
    let mut at = 0;
    while at < text.len() {
        let (start, end) = step.next(text, at)?.unwrap_or((text.len(), text.len()));
        for part in [&text[at..start], &text[start..end]] {
            if !part.is_empty() {
                split(later, part, piece)?;
            }
        }
        at = end;
    }
    Ok(())
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
        split(Family::named(name).unwrap().steps, text, push).unwrap();
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
}
