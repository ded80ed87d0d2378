//! Special tokens: those that a file names by id or that are known by their text, and finding them in a text.

use super::TokenKind;
use super::bpe::text_of;
use crate::error::{Error, Result, try_vec};
use crate::gguf::{Metadata, StringArray};

/// The longest text of a special token. It bounds the time to look for them.
const LONGEST: usize = 1024;

/// What a token is for, where the file does not give its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Ends a turn.
    Eot,
    /// Ends a message that another will continue.
    Eom,
    /// Ends a generation in some model.
    Eog,
    /// Marks a place in code: the place of it in [`SpecialIds::fim`].
    Fim(usize),
}

/// Marks of places in code, by the names that the keys of a file have for them.
const FIM: [&str; 6] = ["pre", "suf", "mid", "pad", "rep", "sep"];
const PRE: Role = Role::Fim(0);
const SUF: Role = Role::Fim(1);
const MID: Role = Role::Fim(2);
const PAD: Role = Role::Fim(3);
const REP: Role = Role::Fim(4);
const SEP: Role = Role::Fim(5);

impl Role {
    /// Whether a generation ends with it. A model that writes pad, rep or sep has left the text asked for.
    fn ends(self) -> bool {
        !matches!(self, PRE | SUF | MID)
    }
}

/// Texts by which tokens are known, the same as in llama.cpp: files do not name all of them by id. They are control
/// tokens whatever type the file gives them, except normal ones that [`may_be_written`]. Of several tokens of a role
/// the first row found counts.
const KNOWN: &[(&str, Role)] = &[
    ("<|eot_id|>", Role::Eot),
    ("<|im_end|>", Role::Eot),
    ("<|end|>", Role::Eot),
    ("<end_of_turn>", Role::Eot),
    ("<|endoftext|>", Role::Eot),
    ("<|end_of_text|>", Role::Eot),
    ("<EOT>", Role::Eot),
    ("_<EOT>", Role::Eot),
    ("[EOT]", Role::Eot),
    ("<｜end▁of▁sentence｜>", Role::Eot),
    ("<end_of_utterance>", Role::Eot),
    ("<|eom_id|>", Role::Eom),
    ("<|return|>", Role::Eog),
    ("<|call|>", Role::Eog),
    ("<|calls|>", Role::Eog),
    ("<|flush|>", Role::Eog),
    ("</s>", Role::Eog),
    ("[EOS]", Role::Eog),
    ("<eos>", Role::Eog),
    ("<turn|>", Role::Eog),
    ("<|tool_response>", Role::Eog),
    ("[e~[", Role::Eog),
    ("<|fim_pad|>", PAD),
    ("<fim-pad>", PAD),
    ("<fim_pad>", PAD),
    ("<PAD>", PAD),
    ("[PAD]", PAD),
    ("<|fim_repo|>", REP),
    ("<|repo_name|>", REP),
    ("<fim-repo>", REP),
    ("<REPO>", REP),
    ("<reponame>", REP),
    ("<|file_sep|>", SEP),
    ("<|fim_prefix|>", PRE),
    ("<fim-prefix>", PRE),
    ("<fim_prefix>", PRE),
    ("<｜fim▁begin｜>", PRE),
    ("<PRE>", PRE),
    ("▁<PRE>", PRE),
    ("<|code_prefix|>", PRE),
    ("<|prefix|>", PRE),
    ("<|fim_suffix|>", SUF),
    ("<fim-suffix>", SUF),
    ("<fim_suffix>", SUF),
    ("<｜fim▁hole｜>", SUF),
    ("<SUF>", SUF),
    ("▁<SUF>", SUF),
    ("<|code_suffix|>", SUF),
    ("<|suffix|>", SUF),
    ("<|fim_middle|>", MID),
    ("<fim-middle>", MID),
    ("<fim_middle>", MID),
    ("<｜fim▁end｜>", MID),
    ("<MID>", MID),
    ("▁<MID>", MID),
    ("<|code_middle|>", MID),
    ("<|middle|>", MID),
];

/// Whether people write this text: Qwen2 has `</s>`, a tag of HTML, as an ordinary token.
fn may_be_written(text: &str) -> bool {
    !text.contains(['|', '｜', '▁'])
}

/// The ids of tokens with a meaning of their own.
#[derive(Debug, Default)]
pub struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unknown: Option<u32>,
    /// Between two texts.
    pub sep: Option<u32>,
    /// Fills up a batch.
    pub pad: Option<u32>,
    /// Stands for what is to be guessed.
    pub mask: Option<u32>,
    /// Marks of places in code, in the order of [`FIM`].
    pub fim: [Option<u32>; FIM.len()],
    /// Ends of generation, sorted.
    pub eog: Vec<u32>,
}

impl SpecialIds {
    /// Reads the ids from the metadata, finds the rest by text, and makes what it finds a control token.
    ///
    /// `find` gives the id of a token by its text. A `default_id` counts when the file gives no id for BOS, EOS and
    /// unknown and that token is of the kind to be expected.
    ///
    /// # Errors
    /// [`Error::BadFile`] for an id that is no token.
    pub fn read(
        metadata: &Metadata,
        kinds: &mut [TokenKind],
        find: impl Fn(&str) -> Option<u32>,
        defaults: [Option<u32>; 3],
    ) -> Result<SpecialIds> {
        let n_vocab = kinds.len();
        let id = |key: &str| match metadata.u32(key)? {
            Some(id) if id as usize >= n_vocab => Err(Error::bad_file(key, format!("an id below {n_vocab}"), id)),
            id => Ok(id),
        };
        let [bos, eos, unknown] = defaults;
        // kigo does without these; a number that is no token, as some files have, counts as none.
        let known = |key: &str| metadata.u32(key).ok().flatten().filter(|&id| (id as usize) < n_vocab);
        let default = |id: Option<u32>, kind| id.filter(|&id| kinds.get(id as usize) == Some(&kind));
        let mut ids = SpecialIds {
            bos: id("tokenizer.ggml.bos_token_id")?.or_else(|| default(bos, TokenKind::Control)),
            eos: id("tokenizer.ggml.eos_token_id")?.or_else(|| default(eos, TokenKind::Control)),
            eot: id("tokenizer.ggml.eot_token_id")?,
            eom: id("tokenizer.ggml.eom_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?.or_else(|| default(unknown, TokenKind::Unknown)),
            sep: known("tokenizer.ggml.seperator_token_id"),
            pad: known("tokenizer.ggml.padding_token_id"),
            mask: known("tokenizer.ggml.mask_token_id"),
            fim: FIM.map(|name| known(&format!("tokenizer.ggml.fim_{name}_token_id"))),
            eog: Vec::new(),
        };
        // Gemma has tags of HTML as tokens; `<s>` and `</s>` strike a text through there.
        let tags = find("<s>").is_some_and(|id| kinds.get(id as usize) == Some(&TokenKind::UserDefined));
        for &(text, role) in KNOWN {
            let Some(id) = find(text) else { continue };
            let Some(kind) = kinds.get_mut(id as usize) else { continue };
            let is_tag = tags && text == "</s>" && *kind == TokenKind::UserDefined;
            if is_tag || (*kind == TokenKind::Normal && may_be_written(text)) {
                continue;
            }
            *kind = TokenKind::Control;
            match role {
                Role::Eot => ids.eot = ids.eot.or(Some(id)),
                Role::Eom => ids.eom = ids.eom.or(Some(id)),
                Role::Fim(place) => {
                    if let Some(slot) = ids.fim.get_mut(place) {
                        *slot = slot.or(Some(id));
                    }
                }
                Role::Eog => {}
            }
            if role.ends() {
                ids.eog.push(id);
            }
        }
        ids.eog.extend([ids.eos, ids.eot, ids.eom].into_iter().flatten());
        for key in
            ["tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.fim_rep_token_id", "tokenizer.ggml.fim_sep_token_id"]
        {
            ids.eog.extend(id(key)?);
        }
        ids.drop_false_ends(&find);
        ids.eog.sort_unstable();
        ids.eog.dedup();
        Ok(ids)
    }

    /// Two texts end a generation in some vocabularies and not in others: `<|end|>` closes a message within an
    /// answer where `<|return|>` or `<|flush|>` ends it; `</s>` is markup where generations end with other tokens.
    fn drop_false_ends(&mut self, find: impl Fn(&str) -> Option<u32>) {
        let has = |text| find(text).is_some();
        let harmony =
            (has("<|return|>") && has("<|call|>")) || (has("<|flush|>") && (has("<|call|>") || has("<|calls|>")));
        let not_ends = [
            find("<|end|>").filter(|_| harmony),
            find("</s>").filter(|_| has("<|tool_response>") || has("<|plamo:eos|>")),
        ];
        self.eog.retain(|&id| !not_ends.contains(&Some(id)));
    }
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub enum Fragment<'t> {
    /// Ordinary text, not empty.
    Text(&'t str),
    /// A special token.
    Special(u32),
}

/// Special tokens, ready to be found.
#[derive(Debug)]
pub struct Specials {
    /// Tokens that match in any text (user-defined), and all that match in trusted text, each sorted by text.
    any: Matcher,
    trusted: Matcher,
    /// Sorted ids of tokens that swallow the white space after them.
    rstrip: Vec<u32>,
}

impl Specials {
    /// Collects the special tokens; `rstrip` says which swallow the white space after them.
    ///
    /// # Errors
    /// [`Error::BadFile`] for a text of more than 1024 bytes.
    pub fn new(tokens: &StringArray, kinds: &[TokenKind], rstrip: impl Fn(&[u8]) -> bool) -> Result<Specials> {
        let any = Matcher::new(tokens, kinds, |kind| kind == TokenKind::UserDefined)?;
        let trusted = Matcher::new(tokens, kinds, TokenKind::is_special)?;
        let mut stripping: Vec<u32> = try_vec(trusted.ids.len(), "the special tokens")?;
        stripping.extend(trusted.ids.iter().copied().filter(|&id| rstrip(text_of(tokens, id))));
        stripping.sort_unstable();
        Ok(Specials { any, trusted, rstrip: stripping })
    }

    /// Calls `fragment` with the parts of `text` in order. The leftmost special token is taken, the longest of those
    /// that start there. With `parse_special` false only user-defined tokens are special. A token of one character is
    /// none behind two markers `broken_by`.
    pub fn split<'t>(
        &self,
        text: &'t str,
        texts: &StringArray,
        (parse_special, broken_by): (bool, Option<char>),
        mut fragment: impl FnMut(Fragment<'t>) -> Result<()>,
    ) -> Result<()> {
        let matcher = if parse_special { &self.trusted } else { &self.any };
        let unmade = broken_by.map(|marker| [marker; 2].iter().collect::<String>());
        let (mut start, mut at) = (0, 0);
        while let Some(skipped) = text.as_bytes()[at..].iter().position(|&b| matcher.starts[usize::from(b)]) {
            at += skipped;
            let Some((id, len)) = matcher.longest(&text.as_bytes()[at..], texts) else {
                at += 1;
                continue;
            };
            let is_character = || text[at..].chars().next().map(char::len_utf8) == Some(len);
            if unmade.as_ref().is_some_and(|two| text.as_bytes()[..at].ends_with(two.as_bytes())) && is_character() {
                at += len;
                continue;
            }
            if start < at {
                fragment(Fragment::Text(&text[start..at]))?;
            }
            fragment(Fragment::Special(id))?;
            at += len;
            if self.rstrip.binary_search(&id).is_ok() {
                at = text.len() - text[at..].trim_start().len();
            }
            start = at;
        }
        if start < text.len() { fragment(Fragment::Text(&text[start..])) } else { Ok(()) }
    }
}

/// Finds the longest of a set of tokens at the start of a text.
#[derive(Debug)]
struct Matcher {
    /// Sorted by text.
    ids: Vec<u32>,
    /// Whether a text starts with this byte.
    starts: [bool; 256],
}

impl Matcher {
    fn new(tokens: &StringArray, kinds: &[TokenKind], wanted: impl Fn(TokenKind) -> bool) -> Result<Matcher> {
        let chosen = || (0_u32..).zip(kinds).filter(|&(_, &kind)| wanted(kind)).map(|(id, _)| id);
        let mut ids: Vec<u32> = try_vec(chosen().count(), "the special tokens")?;
        let mut starts = [false; 256];
        for id in chosen() {
            let text = text_of(tokens, id);
            // An empty text would match everywhere, and half a character cannot be cut out of a text.
            let Ok(checked) = std::str::from_utf8(text) else { continue };
            let Some(&first) = checked.as_bytes().first() else { continue };
            if text.len() > LONGEST {
                let field = format!("tokenizer.ggml.tokens[{id}]");
                let expected = format!("at most {LONGEST} bytes in a special token");
                return Err(Error::bad_file(field, expected, text.len()));
            }
            starts[usize::from(first)] = true;
            ids.push(id);
        }
        // Of equal texts the last counts, as everywhere.
        ids.sort_unstable_by(|&a, &b| text_of(tokens, a).cmp(text_of(tokens, b)).then(b.cmp(&a)));
        ids.dedup_by(|b, a| text_of(tokens, *a) == text_of(tokens, *b));
        Ok(Matcher { ids, starts })
    }

    /// The token and its length. Narrows the sorted texts byte by byte: those with the same start are neighbours.
    fn longest(&self, text: &[u8], texts: &StringArray) -> Option<(u32, usize)> {
        let mut candidates = self.ids.as_slice();
        let mut found = None;
        for (len, &byte) in text.iter().enumerate() {
            let next = |id: u32| text_of(texts, id).get(len).copied();
            let from = candidates.partition_point(|&id| next(id) < Some(byte));
            let to = candidates.partition_point(|&id| next(id) <= Some(byte));
            candidates = &candidates[from..to];
            // The shortest of the texts that share a start comes first.
            let Some(&first) = candidates.first() else { break };
            if text_of(texts, first).len() == len + 1 {
                found = Some((first, len + 1));
            }
            if candidates.len() == 1 && found.is_some_and(|(id, _)| id == first) {
                break;
            }
        }
        found
    }
}
