//! The scanners: each gives the bytes of its expression's match at the start of a text, 0 when there is none.

use super::class::{
    Case, LETTER, MARK, NUMBER, OTHER, PUNCTUATION, SPACE, SYMBOL, at_most, blanks, case, class, contraction, fold,
    is_newline, run, spaces, starts, while_,
};

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
pub fn gpt2(text: &str) -> usize {
    if let Some(len) = contraction(text, |c| c) {
        return len;
    }
    let space = usize::from(text.starts_with(' '));
    let word = [LETTER, NUMBER, OTHER].into_iter().find(|&set| starts(&text[space..], set));
    word.map_or_else(|| blanks(text), |set| space + run(&text[space..], set))
}

/// `\p{N}`
pub fn number(text: &str) -> usize {
    at_most(1, text, NUMBER)
}

/// `\p{N}{1,3}`
pub fn up_to_three_numbers(text: &str) -> usize {
    at_most(3, text, NUMBER)
}

/// `\p{N}+`
pub fn numbers(text: &str) -> usize {
    run(text, NUMBER)
}

/// `[0-9]+`
pub fn digits(text: &str) -> usize {
    while_(text, |c| c.is_ascii_digit())
}

/// `[0-9][0-9][0-9]`
pub fn three_digits(text: &str) -> usize {
    let digits = text.bytes().take(3).filter(u8::is_ascii_digit).count();
    if digits == 3 { 3 } else { 0 }
}

/// `[\r\n]`
pub fn newline(text: &str) -> usize {
    usize::from(text.starts_with(is_newline))
}

/// ``[\p{P}$+<=>^~|`]+``: punctuation, and all of ASCII that looks like it.
pub fn marks_of_falcon(text: &str) -> usize {
    while_(text, |c| class(c) == PUNCTUATION || (c.is_ascii() && class(c) == SYMBOL))
}

/// `[\p{P}$+<=>^~|]+`
pub fn marks_of_default(text: &str) -> usize {
    while_(text, |c| class(c) == PUNCTUATION || (c.is_ascii() && c != '`' && class(c) == SYMBOL))
}

/// Llama 3: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|`
/// `\s+(?!\S)|\s+`. Its ancestor is the encoding cl100k of tiktoken.
pub fn llama3(text: &str) -> usize {
    cl100k(text, LETTER, 3)
}

/// Qwen2: that of Llama 3 with numbers one by one, `\p{N}`.
pub fn qwen2(text: &str) -> usize {
    cl100k(text, LETTER, 1)
}

/// Qwen3.5: that of Qwen2 with `[\p{L}\p{M}]` for `\p{L}`.
pub fn qwen35(text: &str) -> usize {
    cl100k(text, LETTER | MARK, 1)
}

/// That of Llama 3 with `\p{N}+`.
pub fn llama3_numbers(text: &str) -> usize {
    cl100k(text, LETTER, usize::MAX)
}

fn cl100k(text: &str, letters: u8, most_numbers: usize) -> usize {
    if let Some(len) = contraction(text, fold) {
        return len;
    }
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let first_class = class(first);
    if first_class & letters != 0 {
        return run(text, letters);
    }
    if first_class == NUMBER {
        return at_most(most_numbers, text, NUMBER);
    }
    if !is_newline(first) && starts(chars.as_str(), letters) {
        return first.len_utf8() + run(chars.as_str(), letters);
    }
    match marks(text, OTHER & !letters) {
        0 => spaces(text),
        end => end + while_(&text[end..], is_newline),
    }
}

/// ` ?[...]+`
fn marks(text: &str, set: u8) -> usize {
    let space = usize::from(text.starts_with(' '));
    match run(&text[space..], set) {
        0 => 0,
        len => space + len,
    }
}

/// GPT-4o: `[^\r\n\p{L}\p{N}]?U*W+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?U+W*(?i:'s|...)?|\p{N}{1,3}|`
/// ` ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+` where U is `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]` and W is
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`. It is the encoding o200k of tiktoken.
pub fn gpt4o(text: &str) -> usize {
    match cased_word(text) {
        0 => around_words(text, 3),
        end => end + contraction(&text[end..], fold).unwrap_or(0),
    }
}

/// Mistral's tekken: that of GPT-4o without the contractions, and with `\p{N}`.
pub fn tekken(text: &str) -> usize {
    match cased_word(text) {
        0 => around_words(text, 1),
        end => end,
    }
}

/// `\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn around_words(text: &str, most_numbers: usize) -> usize {
    if starts(text, NUMBER) {
        return at_most(most_numbers, text, NUMBER);
    }
    match marks(text, OTHER) {
        0 => spaces(text),
        end => end + while_(&text[end..], |c| is_newline(c) || c == '/'),
    }
}

/// `[^\r\n\p{L}\p{N}]?U*W+|[^\r\n\p{L}\p{N}]?U+W*` as at [`gpt4o`], in the order in which an engine tries it: the
/// first half with and without the character before, then the second.
fn cased_word(text: &str) -> usize {
    let Some(first) = text.chars().next() else { return 0 };
    let before = if is_newline(first) || class(first) & (LETTER | NUMBER) != 0 { 0 } else { first.len_utf8() };
    let with = || Some(before).filter(|&before| before > 0);
    let ends_lower = |at: usize| ends_lower(&text[at..]).map(|len| at + len);
    let capitals = |at: usize| Some(while_(&text[at..], |c| case(c) == Case::Upper)).filter(|&n| n > 0).map(|n| at + n);
    with()
        .and_then(ends_lower)
        .or_else(|| ends_lower(0))
        .or_else(|| with().and_then(capitals))
        .or_else(|| capitals(0))
        .unwrap_or(0)
}

/// `U*W+`. Where no small letter follows the run of U, the engine gives back characters of it until one is W too.
fn ends_lower(text: &str) -> Option<usize> {
    let mut last_both = None;
    let mut chars = text.char_indices();
    for (at, c) in chars.by_ref() {
        match case(c) {
            Case::Upper => {}
            Case::Both => last_both = Some(at + c.len_utf8()),
            Case::Lower => {
                return Some(at + while_(&text[at..], |c| matches!(case(c), Case::Lower | Case::Both)));
            }
            Case::Neither => break,
        }
    }
    last_both
}

/// `\s?\p{L}+`
pub fn letters(text: &str) -> usize {
    after_space(text, |c| class(c) == LETTER)
}

/// `\s?\p{P}+`
pub fn punctuation(text: &str) -> usize {
    after_space(text, |c| class(c) == PUNCTUATION)
}

/// ``\s?[!-/:-~！-／：-～‘-‟　-。]+``
pub fn marks_of_deepseek(text: &str) -> usize {
    let is = |c| {
        matches!(c, '!'..='/' | ':'..='~' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff5e}')
            || matches!(c, '\u{2018}'..='\u{201f}' | '\u{3000}'..='\u{3002}')
    };
    after_space(text, is)
}

/// `\s?[...]+`. A character may be white space and in the set too: then it is the space if others follow it.
pub fn after_space(text: &str, is: impl Fn(char) -> bool) -> usize {
    let space = at_most(1, text, SPACE);
    match while_(&text[space..], &is) {
        0 => while_(text, is),
        len => space + len,
    }
}

/// Finds `\s+$`.
pub fn trailing_space(text: &str) -> Option<(usize, usize)> {
    let start = text.trim_end().len();
    (start < text.len()).then_some((start, text.len()))
}

/// `[一-龥ࠀ-一가-퟿]+`
pub fn cjk(text: &str) -> usize {
    while_(text, |c| matches!(c, '\u{800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}'))
}

/// `[一-龥぀-ゟ゠-ヿ]+`
pub fn han_and_kana(text: &str) -> usize {
    while_(text, |c| matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}'))
}

/// DeepSeek V3: ``[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|``
/// `\s+(?!\S)|\s+`
pub fn deepseek3(text: &str) -> usize {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let rest = chars.as_str();
    if first.is_ascii_punctuation() && rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return 1 + while_(rest, |c| c.is_ascii_alphabetic());
    }
    const WORD: u8 = LETTER | MARK;
    if class(first) & WORD != 0 {
        return run(text, WORD);
    }
    if !is_newline(first) && class(first) & (PUNCTUATION | SYMBOL) == 0 && starts(rest, WORD) {
        return first.len_utf8() + run(rest, WORD);
    }
    match marks(text, PUNCTUATION | SYMBOL) {
        0 => spaces(text),
        end => end + while_(&text[end..], is_newline),
    }
}
