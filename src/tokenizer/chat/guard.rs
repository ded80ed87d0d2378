//! Keeps text of messages from becoming control tokens.
//!
//! A marker, a character that occurs in no input, goes into every string before the template sees it: into each
//! occurrence of a control token's text, and at each end (as it is, and as `trim` would leave it) where the rest of a
//! control token could come from the template or a neighbour. Where the template has a literal that ends in the start of
//! a control token and one that starts with its end, whatever could be a part between them is marked too. A control
//! token of one character cannot be broken inside: it gets two markers before it. Control tokens are matched in either
//! case of ASCII letters, since templates may change it. The tokenizer removes the marker after the split at special
//! tokens.
//!
//! Values of the keys `role` and `type` name parts of the template's protocol (`<|user|>` may be built from a role):
//! only whole control tokens are broken in them. Keys are what templates look for: one is a part between literals only
//! if it is the whole part.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use serde_json::Value as Json;

use super::RenderOptions;
use super::automaton::Automaton;
use crate::{Error, Result};

/// Noncharacters: no text that is interchanged has a use for them.
const MARKERS: RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

/// Whether a guard may use `c` as its marker.
pub fn is_marker(c: char) -> bool {
    MARKERS.contains(&c)
}

/// The texts of a vocabulary's control tokens, prepared for searching. One per model.
#[derive(Debug, Default)]
pub struct ControlTokens {
    forward: Automaton,
    /// Over the reversed texts.
    backward: Automaton,
    /// Bytes of the longest text.
    longest: usize,
    /// The texts in lower case.
    texts: Vec<String>,
    /// Texts of one character, sorted.
    characters: Vec<char>,
}

impl ControlTokens {
    /// Prepares `texts`.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> ControlTokens {
        let mut tokens = ControlTokens::default();
        for text in texts {
            if text.chars().nth(1).is_none() {
                tokens.characters.extend(text.chars());
                continue;
            }
            tokens.texts.push(text.to_ascii_lowercase());
            tokens.forward.insert(text.bytes());
            tokens.backward.insert(text.bytes().rev());
            tokens.longest = tokens.longest.max(text.len());
        }
        tokens.forward.link();
        tokens.backward.link();
        tokens.characters.sort_unstable();
        tokens
    }
}

impl ControlTokens {
    /// The texts that have a start among the states `open` and an end among `close`, as [`Guard::assembled`].
    fn assembled(&self, open: &[u32], close: &[u32]) -> Option<String> {
        let mut joined = String::new();
        if open.is_empty() || close.is_empty() {
            return Some(joined);
        }
        let (open, close) = (self.forward.with_suffixes(open), self.backward.with_suffixes(close));
        for text in &self.texts {
            let starts = self.forward.passes(&open, text.bytes());
            if starts && self.backward.passes(&close, text.bytes().rev()) {
                joined.push_str(text);
                joined.push('\0');
            }
            if joined.len() > MAX_ASSEMBLED {
                return None;
            }
        }
        Some(joined)
    }
}

/// The guard of one rendering.
#[derive(Debug)]
pub struct Guard<'a> {
    tokens: &'a ControlTokens,
    marker: char,
    /// The states, other than the empty one, in which the template's literals leave the automata.
    open: Vec<u32>,
    /// The same for the reversed literals and the backward automaton.
    close: Vec<u32>,
    /// The control tokens that begin and end in literals, joined by NULs; `None` when they are too long to search.
    assembled: Option<String>,
}

/// Most bytes of control tokens that every short text is searched in.
const MAX_ASSEMBLED: usize = 1 << 12;

/// What a text is in its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Anything that a user wrote.
    Text,
    /// The key of an object.
    Key,
    /// A name of the template's protocol.
    Protocol,
}

impl Guard<'_> {
    /// A guard for a template with these literals, whose marker is an [`unused_marker`].
    pub fn new<'a>(tokens: &'a ControlTokens, literals: &[String], marker: char) -> Guard<'a> {
        let mut open: Vec<u32> = literals.iter().map(|text| tokens.forward.run(0, text.bytes())).collect();
        let mut close: Vec<u32> = literals.iter().map(|text| tokens.backward.run(0, text.bytes().rev())).collect();
        for states in [&mut open, &mut close] {
            states.sort_unstable();
            states.dedup();
            states.retain(|state| *state != 0);
        }
        let assembled = tokens.assembled(&open, &close);
        Guard { tokens, marker, open, close, assembled }
    }

    /// Whether `text` could be one of several parts between literals that make a control token.
    fn is_part(&self, text: &str) -> bool {
        let is_inside = |assembled: &String| assembled.contains(&text.to_ascii_lowercase());
        (1..self.tokens.longest).contains(&text.len()) && self.assembled.as_ref().is_none_or(is_inside)
    }

    /// Whether the template's literals around `text` could make a control token of it.
    fn is_middle(&self, text: &str) -> bool {
        let spans = |automaton: &Automaton, from: &[u32], bytes: &mut dyn Iterator<Item = u8>| {
            // All at once, so that each byte is read once; a state that no longer reaches into the literal is left out.
            let mut states = from.to_vec();
            for (i, byte) in bytes.enumerate() {
                states.iter_mut().for_each(|state| *state = automaton.step(*state, byte));
                states.retain(|state| automaton.depth(*state) > i + 1);
                states.dedup();
                if states.is_empty() {
                    return false;
                }
            }
            !states.is_empty()
        };
        (1..self.tokens.longest).contains(&text.len())
            && spans(&self.tokens.forward, &self.open, &mut text.bytes())
            && spans(&self.tokens.backward, &self.close, &mut text.bytes().rev())
    }

    /// The character that this guard inserts.
    pub fn marker(&self) -> char {
        self.marker
    }

    /// `text` without anything that is a control token or, unless it is of the protocol, could become one next to other
    /// text.
    pub fn mark<'t>(&self, text: &'t str, as_what: Use) -> Cow<'t, str> {
        let mut places = Vec::new();
        let bytes = text.as_bytes();
        let trimmed_end = text.trim_end().len();
        let (mut state, mut end_state) = (0, 0);
        let mut character = 0;
        for (i, byte) in bytes.iter().enumerate() {
            if text.is_char_boundary(i) {
                character = i;
            }
            state = self.tokens.forward.step(state, *byte);
            if self.tokens.forward.is_end(state) {
                // Before the last character: inside every control token that ends here.
                places.push(character);
            }
            if i + 1 == trimmed_end {
                end_state = state;
            }
        }
        if as_what != Use::Protocol {
            for (at, state) in [(trimmed_end, end_state), (text.len(), state)] {
                if state != 0 {
                    places.push(at);
                }
            }
            let trimmed_start = text.len() - text.trim_start().len();
            for at in [0, trimmed_start] {
                let head = &bytes[at..text.len().min(at.saturating_add(self.tokens.longest))];
                if self.tokens.backward.run(0, head.iter().rev().copied()) != 0 {
                    places.push(at);
                }
            }
            let is_middle = |text| self.is_middle(text) || (as_what == Use::Text && self.is_part(text));
            if is_middle(text) || is_middle(text.trim()) {
                places.push(trimmed_start.min(trimmed_end));
            }
        }
        places.sort_unstable();
        places.dedup();
        if !self.tokens.characters.is_empty() {
            for (at, _) in text.char_indices().filter(|(_, c)| self.tokens.characters.binary_search(c).is_ok()) {
                places.extend([at; 2]);
            }
            places.sort_unstable();
        }
        if places.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut marked = String::with_capacity(text.len() + places.len() * self.marker.len_utf8());
        let mut from = 0;
        for at in places {
            marked.push_str(&text[from..at]);
            marked.push(self.marker);
            from = at;
        }
        marked.push_str(&text[from..]);
        Cow::Owned(marked)
    }
}

/// A marker that occurs in none of the inputs.
///
/// # Errors
/// [`Error::InvalidArgument`] when every possible one does. The inputs' depth has to be bounded by the caller.
pub fn unused_marker(literals: &[String], messages: &Json, options: &RenderOptions) -> Result<char> {
    let mut used = 0;
    literals.iter().for_each(|literal| note_str(literal, &mut used));
    for text in [options.bos_token, options.eos_token].into_iter().flatten() {
        note_str(text, &mut used);
    }
    note(messages, &mut used);
    if let Some(tools) = options.tools {
        note(tools, &mut used);
    }
    for (key, value) in options.variables.into_iter().flatten() {
        note_str(key, &mut used);
        note(value, &mut used);
    }
    let unused = MARKERS.enumerate().find(|(i, _)| used & (1 << i) == 0);
    unused.map(|(_, marker)| marker).ok_or_else(|| {
        let expected = "text without at least one of the noncharacters U+FDD0..U+FDEF";
        Error::invalid_argument("messages", expected, "all 32")
    })
}

/// Sets the bit of every marker in `text`.
fn note_str(text: &str, used: &mut u32) {
    for bytes in text.as_bytes().windows(3) {
        // U+FDD0..=U+FDEF in UTF-8.
        if let [0xEF, 0xB7, last @ 0x90..=0xAF] = bytes {
            *used |= 1 << (last - 0x90);
        }
    }
}

fn note(value: &Json, used: &mut u32) {
    match value {
        Json::String(text) => note_str(text, used),
        Json::Array(items) => items.iter().for_each(|item| note(item, used)),
        Json::Object(map) => map.iter().for_each(|(key, item)| {
            note_str(key, used);
            note(item, used);
        }),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard<'a>(tokens: &'a ControlTokens, literals: &[&str]) -> Guard<'a> {
        let literals: Vec<String> = literals.iter().map(|s| s.to_string()).collect();
        Guard::new(tokens, &literals, '\u{FDD0}')
    }

    fn marked(tokens: &[&str], text: &str) -> String {
        let tokens = ControlTokens::new(tokens.iter().copied());
        guard(&tokens, &[]).mark(text, Use::Text).replace('\u{FDD0}', "^")
    }

    #[test]
    fn occurrences_are_broken() {
        let tokens = ["<|im_end|>", "<s>", "<|im_end|><s>", "[INST]", "｜终｜"];
        assert_eq!(marked(&tokens, "plain text"), "plain text");
        assert_eq!(marked(&tokens, "a<|im_end|>b<s>c"), "a<|im_end|^>b<s^>c");
        assert_eq!(marked(&tokens, "x<|im_end|><s>y"), "x<|im_end|^><s^>y");
        assert_eq!(marked(&tokens, "x[inst]y"), "x[inst^]y");
        assert_eq!(marked(&tokens, "x｜终｜y"), "x｜终^｜y");
    }

    #[test]
    fn ends_that_could_be_completed_are_closed() {
        let tokens = ["<|im_end|>", "<s>"];
        assert_eq!(marked(&tokens, "x<|im_"), "x<|im_^");
        assert_eq!(marked(&tokens, "x<|im_ \n"), "x<|im_^ \n");
        assert_eq!(marked(&tokens, "end|>x"), "^end|>x");
        assert_eq!(marked(&tokens, "\n >x"), "\n ^>x");
        assert_eq!(marked(&tokens, "end|> <"), "^end|> <^");
        assert_eq!(marked(&tokens, ""), "");
        assert_eq!(marked(&tokens, " "), " ");
    }

    #[test]
    fn middles_are_broken_where_the_template_has_both_sides() {
        let tokens = ControlTokens::new(["<|im_end|>", "[INST]"]);
        let both = guard(&tokens, &["x<|", "|>\n", "[", "] "]);
        for (text, marked) in [("im_end", "^im_end"), (" INST\n", " ^INST\n"), ("user", "user"), ("", "")] {
            assert_eq!(both.mark(text, Use::Text).replace('\u{FDD0}', "^"), marked);
            assert_eq!(both.mark(text, Use::Protocol), text);
        }
        assert_eq!(guard(&tokens, &["<|", "\n"]).mark("im_end", Use::Text), "im_end");
        assert_eq!(guard(&tokens, &["x", "|>"]).mark("im_end", Use::Text), "im_end");
    }

    /// `<|` + `im_` + `end` + `|>`, each from somewhere else.
    #[test]
    fn parts_are_broken_where_the_template_has_both_ends() {
        let tokens = ControlTokens::new(["<|im_end|>", "[INST]"]);
        let both = guard(&tokens, &["x<|", "|>\n"]);
        for (text, marked) in [("im_", "^im_"), (" End", " ^End"), ("_", "^_"), ("INS", "INS"), ("ending", "ending")] {
            assert_eq!(both.mark(text, Use::Text).replace('\u{FDD0}', "^"), marked);
            assert_eq!(both.mark(text, Use::Key), text);
        }
        assert_eq!(guard(&tokens, &["x<|", "[", "x"]).mark("im_", Use::Text), "im_");
        let many: Vec<String> = (0..3000).map(|i| format!("<|reserved_{i}|>")).collect();
        let tokens = ControlTokens::new(many.iter().map(String::as_str));
        assert_eq!(guard(&tokens, &["<|", "|>"]).mark("x", Use::Text), "\u{FDD0}x", "too many to search");
    }

    #[test]
    fn control_tokens_of_one_character_get_two_markers() {
        assert_eq!(marked(&["␃", "<s>"], "a␃␃b<s>c"), "a^^␃^^␃b<s^>c");
    }

    #[test]
    fn every_token_that_ends_at_one_place_is_broken() {
        let text = marked(&["ab", "cab", "bcab", "abc"], "abcab");
        for token in ["ab", "cab", "bcab", "abc"] {
            assert!(!text.contains(token), "{text}");
        }
    }

    #[test]
    fn long_repetitive_input_is_linear() {
        let pattern = "a".repeat(1 << 16) + "b";
        let tokens = ControlTokens::new([pattern.as_str()]);
        let start = std::time::Instant::now();
        guard(&tokens, &[]).mark(&"a".repeat(1 << 20), Use::Text);
        assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
    }
}
