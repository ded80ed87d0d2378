//! What the expressions of pre-tokenizers tell apart, and the parts that they are made of.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// A set of classes of characters.
pub type Set = u8;

/// `\p{L}`
pub const LETTER: Set = 1;
/// `\p{M}`
pub const MARK: Set = 2;
/// `\p{N}`
pub const NUMBER: Set = 4;
/// `\p{P}`
pub const PUNCTUATION: Set = 8;
/// `\p{S}`
pub const SYMBOL: Set = 16;
/// `\s`: White_Space, which counts before the general category.
pub const SPACE: Set = 32;
/// Everything else: control characters, unassigned ones.
pub const REST: Set = 64;
/// `[^\s\p{L}\p{N}]`
pub const OTHER: Set = MARK | PUNCTUATION | SYMBOL | REST;

/// The class of a character: a set of one.
#[inline]
pub fn class(c: char) -> Set {
    match c {
        'a'..='z' | 'A'..='Z' => LETTER,
        '0'..='9' => NUMBER,
        ' ' | '\t'..='\r' => SPACE,
        '$' | '+' | '<' | '=' | '>' | '^' | '`' | '|' | '~' => SYMBOL,
        '!'..='~' => PUNCTUATION,
        '\0'..='\x7f' => REST,
        _ if c.is_whitespace() => SPACE,
        _ => match c.general_category_group() {
            GeneralCategoryGroup::Letter => LETTER,
            GeneralCategoryGroup::Mark => MARK,
            GeneralCategoryGroup::Number => NUMBER,
            GeneralCategoryGroup::Punctuation => PUNCTUATION,
            GeneralCategoryGroup::Symbol => SYMBOL,
            _ => REST,
        },
    }
}

/// Where a character may stand in a word that is written in capitals first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// `[\p{Lu}\p{Lt}]`
    Upper,
    /// `\p{Ll}`
    Lower,
    /// `[\p{Lm}\p{Lo}\p{M}]`, which counts as both.
    Both,
    /// No letter and no mark.
    Neither,
}

/// The case of a character.
#[inline]
pub fn case(c: char) -> Case {
    match c {
        'a'..='z' => Case::Lower,
        'A'..='Z' => Case::Upper,
        '\0'..='\x7f' => Case::Neither,
        _ => match c.general_category() {
            GeneralCategory::UppercaseLetter | GeneralCategory::TitlecaseLetter => Case::Upper,
            GeneralCategory::LowercaseLetter => Case::Lower,
            GeneralCategory::ModifierLetter | GeneralCategory::OtherLetter => Case::Both,
            _ if c.general_category_group() == GeneralCategoryGroup::Mark => Case::Both,
            _ => Case::Neither,
        },
    }
}

/// Whether the first character is in the set.
pub fn starts(text: &str, set: Set) -> bool {
    text.chars().next().is_some_and(|c| class(c) & set != 0)
}

/// Bytes of the leading characters for which `is` holds: `[...]*`.
#[inline]
pub fn while_(text: &str, is: impl Fn(char) -> bool) -> usize {
    text.char_indices().find(|&(_, c)| !is(c)).map_or(text.len(), |(at, _)| at)
}

/// Bytes of the leading characters of a set: `[...]*`.
#[inline]
pub fn run(text: &str, set: Set) -> usize {
    while_(text, |c| class(c) & set != 0)
}

/// Bytes of up to `n` leading characters of a set: `[...]{0,n}`.
pub fn at_most(n: usize, text: &str, set: Set) -> usize {
    text.chars().take(n).take_while(|&c| class(c) & set != 0).map(char::len_utf8).sum()
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`: white space up to its last newline; without one [`blanks`].
pub fn spaces(text: &str) -> usize {
    match text[..run(text, SPACE)].rfind(is_newline) {
        Some(newline) => newline + 1,
        None => blanks(text),
    }
}

/// `\s+(?!\S)|\s+`: a run of white space without its last character, which belongs to the word that follows; all of
/// it when nothing follows or it is a single character.
pub fn blanks(text: &str) -> usize {
    let end = run(text, SPACE);
    match text[..end].char_indices().next_back() {
        Some((last, _)) if last > 0 && end < text.len() => last,
        _ => end,
    }
}

/// `[\r\n]`
pub fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

/// `'s|'t|'re|'ve|'m|'ll|'d` after `fold` of the letters.
pub fn contraction(text: &str, fold: fn(char) -> char) -> Option<usize> {
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
pub fn fold(c: char) -> char {
    if c == '\u{17f}' { 's' } else { c.to_ascii_lowercase() }
}
