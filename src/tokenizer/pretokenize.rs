//! Pre-tokenizers: they cut a text into the pieces inside which byte-pair merging happens.
//!
//! Model makers define them as regular expressions. A backtracking engine overflows its stack on a million spaces,
//! so here each is a small scanner that looks at every character a bounded number of times. `\s` is Unicode's
//! White_Space, `\p{L}` and `\p{N}` are its general categories. To add a pre-tokenizer, write its matchers from the
//! building blocks at the end and add a row to [`FAMILIES`].

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use crate::error::Result;

/// Bytes of the match at the start of a text that is not empty, 0 when there is none.
type Matcher = fn(&str) -> usize;

/// Pre-tokenizers that cut alike.
#[derive(Debug)]
pub struct Family {
    /// Values of `tokenizer.ggml.pre`.
    pub names: &'static [&'static str],
    /// Each cuts what the one before it left: its matches, and the text between them.
    steps: &'static [Matcher],
    /// A piece that is a token as a whole becomes that token without merging.
    pub ignore_merges: bool,
    /// Whether BOS is added when the file does not say.
    pub add_bos: bool,
}

/// Every pre-tokenizer. Names in one row are those that llama.cpp treats as one.
pub const FAMILIES: &[Family] = &[
    Family {
        names: &[
            "gpt-2",
            "a.x-4.0",
            "exaone4",
            "gigachat",
            "granite-docling",
            "jais",
            "mellum",
            "mpt",
            "olmo",
            "phi-2",
            "trillion",
        ],
        steps: &[gpt2],
        ignore_merges: false,
        add_bos: false,
    },
    Family {
        names: &["smollm", "codeshell", "command-r", "exaone", "mellum2", "minerva-7b", "refact", "starcoder"],
        steps: &[digit, gpt2],
        ignore_merges: false,
        add_bos: false,
    },
    Family {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "f2llmv2",
            "grok-2",
            "hunyuan",
            "kormo",
            "megrez",
            "solar-open",
            "stablelm2",
        ],
        steps: &[qwen2],
        ignore_merges: false,
        add_bos: false,
    },
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
        steps: &[llama3],
        ignore_merges: true,
        add_bos: true,
    },
    Family { names: &["dbrx", "smaug-bpe"], steps: &[llama3], ignore_merges: false, add_bos: false },
    Family { names: &["glm4", "glm5"], steps: &[llama3], ignore_merges: true, add_bos: false },
    Family { names: &["chatglm-bpe"], steps: &[llama3], ignore_merges: false, add_bos: false },
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

    /// Calls `piece` with the pieces of `text` in order; together they are the text.
    pub fn split<'t>(&self, text: &'t str, piece: &mut dyn FnMut(&'t str) -> Result<()>) -> Result<()> {
        split(self.steps, text, piece)
    }
}

fn split<'t>(steps: &[Matcher], text: &'t str, piece: &mut dyn FnMut(&'t str) -> Result<()>) -> Result<()> {
    let Some((matcher, later)) = steps.split_first() else {
        return piece(text);
    };
    let (mut start, mut at) = (0, 0);
    while let Some(first) = text[at..].chars().next() {
        let len = matcher(&text[at..]);
        if len == 0 {
            at += first.len_utf8();
            continue;
        }
        if start < at {
            split(later, &text[start..at], piece)?;
        }
        split(later, &text[at..at + len], piece)?;
        at += len;
        start = at;
    }
    if start < at { split(later, &text[start..at], piece) } else { Ok(()) }
}

/// GPT-2: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
fn gpt2(text: &str) -> usize {
    if let Some(len) = contraction(text, |c| c) {
        return len;
    }
    let space = usize::from(text.starts_with(' '));
    match first_class(&text[space..]) {
        Some(class @ (Class::Letter | Class::Number | Class::Other)) => space + run(&text[space..], class),
        Some(Class::Space) | None => spaces(text),
    }
}

/// One digit of any script: `\p{N}`.
fn digit(text: &str) -> usize {
    at_most(1, text, Class::Number)
}

/// Qwen2: that of Llama 3 with digits one by one, `\p{N}`.
fn qwen2(text: &str) -> usize {
    cl100k(text, 1)
}

/// Llama 3: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|`
/// `\s+(?!\S)|\s+`.
fn llama3(text: &str) -> usize {
    cl100k(text, 3)
}

/// The expression at [`llama3`] with `\p{N}{1,digits}`; its ancestor is the encoding cl100k of tiktoken.
fn cl100k(text: &str, digits: usize) -> usize {
    if let Some(len) = contraction(text, fold) {
        return len;
    }
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    match class(first) {
        Class::Letter => return run(text, Class::Letter),
        Class::Number => return at_most(digits, text, Class::Number),
        Class::Space | Class::Other => {}
    }
    if !is_newline(first) && first_class(chars.as_str()) == Some(Class::Letter) {
        return first.len_utf8() + run(chars.as_str(), Class::Letter);
    }
    let space = usize::from(first == ' ');
    if first_class(&text[space..]) == Some(Class::Other) {
        let end = space + run(&text[space..], Class::Other);
        return end + text[end..].bytes().take_while(|&b| is_newline(b.into())).count();
    }
    match text[..run(text, Class::Space)].rfind(is_newline) {
        Some(newline) => newline + 1,
        None => spaces(text),
    }
}

/// What the expressions tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// `[^\s\p{L}\p{N}]`
    Other,
}

#[inline]
fn class(c: char) -> Class {
    match c {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        ' ' | '\t'..='\r' => Class::Space,
        '\0'..='\x7f' => Class::Other,
        _ if c.is_whitespace() => Class::Space,
        _ => match c.general_category_group() {
            GeneralCategoryGroup::Letter => Class::Letter,
            GeneralCategoryGroup::Number => Class::Number,
            _ => Class::Other,
        },
    }
}

fn first_class(text: &str) -> Option<Class> {
    text.chars().next().map(class)
}

/// Bytes of the leading characters of this class: `[...]*`.
#[inline]
fn run(text: &str, of: Class) -> usize {
    text.char_indices().find(|&(_, c)| class(c) != of).map_or(text.len(), |(at, _)| at)
}

/// Bytes of up to `n` leading characters of this class: `[...]{0,n}`.
fn at_most(n: usize, text: &str, of: Class) -> usize {
    text.chars().take(n).take_while(|&c| class(c) == of).map(char::len_utf8).sum()
}

/// `\s+(?!\S)|\s+`: a run of white space without its last character, which belongs to the word that follows; all of
/// it when nothing follows or it is a single character.
fn spaces(text: &str) -> usize {
    let end = run(text, Class::Space);
    match text[..end].char_indices().next_back() {
        Some((last, _)) if last > 0 && end < text.len() => last,
        _ => end,
    }
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

/// `'s|'t|'re|'ve|'m|'ll|'d` after `fold` of the letters.
fn contraction(text: &str, fold: fn(char) -> char) -> Option<usize> {
    let mut letters = text.strip_prefix('\'')?.chars();
    let first = letters.next()?;
    match fold(first) {
        's' | 't' | 'm' | 'd' => Some(1 + first.len_utf8()),
        folded @ ('r' | 'v' | 'l') => {
            let second = letters.next()?;
            let whole = fold(second) == if folded == 'l' { 'l' } else { 'e' };
            whole.then_some(1 + first.len_utf8() + second.len_utf8())
        }
        _ => None,
    }
}

/// Unicode's simple case folding, for the letters of contractions: besides ASCII only the long s folds to one.
fn fold(c: char) -> char {
    if c == '\u{17f}' { 's' } else { c.to_ascii_lowercase() }
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
        Family::named(name).unwrap().split(text, push).unwrap();
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
