//! Grammars: which tokens may come next, so that the text follows a JSON schema, a regular expression or a Lark grammar.
//!
//! The crate `llguidance` compiles a grammar and walks the trie of the vocabulary with a parser (Earley) over a lexer
//! (derivatives of regular expressions). What it may cost is limited: bytes and nesting of the grammar, its size when
//! compiled, states and steps of the lexer, items of the parser. Compiling recurses along the rules, so it has a thread
//! with a stack that the longest grammar cannot fill. Its panics are caught.

use std::fmt;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::error::try_vec;
use crate::tokenizer::{TokenKind, Tokenizer};
use crate::{Error, Result, panics};

/// Most bytes of a JSON schema.
const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Most bytes of a regular expression or a Lark grammar.
const MAX_BYTES: usize = 64 << 10;
/// Most brackets that may be open at a time.
const MAX_DEPTH: usize = 128;
/// Stack for compiling, of which a quarter is enough for the longest chain of rules in the deepest brackets.
const STACK_BYTES: usize = 256 << 20;
/// What compiling takes at most, for each byte of a grammar and besides, roughly.
const BYTES_PER_BYTE: usize = 64;
const BYTES_BESIDES: usize = 16 << 20;
/// Longest token of the trie, in bytes. Longer ones are never chosen.
const MAX_TOKEN_BYTES: usize = 1000;
/// What JSON may have between its parts. A model that likes white space would not come to an end with more.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";
/// Most bytes of what the parser says about a grammar.
const MAX_REASON: usize = 300;

/// A grammar as the host gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrammarText {
    /// A JSON schema; `{}` is any JSON.
    JsonSchema(String),
    /// A regular expression, in the syntax of Rust's crate `regex`, for the whole text.
    Regex(String),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
}

impl GrammarText {
    /// The option that has it.
    pub fn option(&self) -> &'static str {
        match self {
            GrammarText::JsonSchema(_) => "json_schema",
            GrammarText::Regex(_) => "regex",
            GrammarText::Lark(_) => "lark",
        }
    }

    /// Most bytes that it may have.
    pub fn max_bytes(&self) -> usize {
        match self {
            GrammarText::JsonSchema(_) => MAX_SCHEMA_BYTES,
            GrammarText::Regex(_) | GrammarText::Lark(_) => MAX_BYTES,
        }
    }

    fn refuse(&self, reason: impl fmt::Display) -> Error {
        Error::BadGrammar { option: self.option(), reason: short(&reason.to_string()) }
    }

    fn parse(&self) -> Result<TopLevelGrammar> {
        let (GrammarText::JsonSchema(text) | GrammarText::Regex(text) | GrammarText::Lark(text)) = self;
        if text.len() > self.max_bytes() {
            return Err(self.refuse(format!("expected at most {} bytes, found {}", self.max_bytes(), text.len())));
        }
        // Compiling allocates without asking whether it may: asks for the memory first, and gives it back.
        try_vec::<u8>(BYTES_BESIDES + text.len() * BYTES_PER_BYTE, "the grammar").map(drop)?;
        if depth(text) > MAX_DEPTH {
            return Err(self.refuse(format!("expected at most {MAX_DEPTH} brackets open at a time")));
        }
        match self {
            GrammarText::JsonSchema(text) => {
                let mut schema: Value = serde_json::from_str(text).map_err(|error| self.refuse(error))?;
                if let Value::Object(object) = &mut schema {
                    object.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": WHITE_SPACE }));
                }
                Ok(TopLevelGrammar::from_json_schema(schema))
            }
            // It would be taken for an expression without it.
            GrammarText::Regex(text) if text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1 => {
                Err(self.refuse("a backslash at the end"))
            }
            GrammarText::Regex(text) => Ok(TopLevelGrammar::from_regex(text)),
            GrammarText::Lark(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
        }
    }
}

/// How many brackets are open at a time, at most, whatever they mean.
fn depth(text: &str) -> usize {
    let (mut open, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// What llguidance says, without the state that it may append, on one line.
fn short(text: &str) -> String {
    let text = text.split("\n<").next().unwrap_or_default();
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > MAX_REASON {
        let end = (0..=MAX_REASON).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
        line.push_str("...");
    }
    line
}

/// The vocabulary of a model as grammars need it. Made once, shared by all.
pub struct Grammars {
    factory: ParserFactory,
    n_vocab: usize,
}

impl Grammars {
    /// The vocabulary of `tokenizer`. `n_vocab` is the number of logits, which may be larger.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Limit`] for a vocabulary that the trie does not hold.
    pub fn new(tokenizer: &Tokenizer, n_vocab: usize) -> Result<Grammars> {
        // One more, for an end that no token means: a model may have none.
        let mut words: Vec<Vec<u8>> = try_vec(n_vocab + 1, "the vocabulary of grammars")?;
        for id in 0..n_vocab as u32 {
            words.push(word(tokenizer, id)?);
        }
        words.push(Vec::new());
        let end = n_vocab as u32;
        let made = panics::caught(|| {
            let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
            let mut ends: Vec<u32> = tokenizer.eog().iter().copied().filter(|id| *id < end).collect();
            ends.push(end);
            let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ends)));
            let slices = SlicedBiasComputer::general_slices();
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
        });
        let mut factory = match made {
            Ok(Ok(factory)) => factory,
            _ => return Err(Error::Limit { what: "nodes in the vocabulary of a grammar", limit: 1 << 22 }),
        };
        factory.quiet();
        *factory.limits_mut() =
            ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() };
        Ok(Grammars { factory, n_vocab })
    }

    /// Compiles a grammar, and stands at its start.
    ///
    /// # Errors
    /// [`Error::BadGrammar`] when it is not one or takes too much; [`Error::OutOfMemory`].
    pub fn start(&self, text: &GrammarText) -> Result<Grammar> {
        let grammar = text.parse()?;
        let compile = || {
            panics::own_thread();
            self.factory.create_parser(grammar).map(|parser| Matcher::new(Ok(parser)))
        };
        let compiled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("kigo-grammar".into()).stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, compile);
            let no_thread = |_| Error::OutOfMemory { what: "the stack of a thread".into(), bytes: STACK_BYTES as u64 };
            Ok(thread.map_err(no_thread)?.join())
        })?;
        match compiled {
            Ok(Ok(matcher)) => {
                Ok(Grammar { matcher, option: text.option(), n_vocab: self.n_vocab, state: State::Unknown })
            }
            Ok(Err(error)) => Err(text.refuse(error)),
            Err(_) => Err(text.refuse("llguidance cannot compile it")),
        }
    }
}

/// The bytes by which the trie knows a token. A control token has a mark before them that no text has, so that only a
/// grammar that names it, as `<name>`, allows it.
fn word(tokenizer: &Tokenizer, id: u32) -> Result<Vec<u8>> {
    let bytes = tokenizer.token_bytes(id, true);
    let is_named = bytes.starts_with(b"<") && bytes.ends_with(b">");
    let (mark, bytes): (&[u8], &[u8]) = match tokenizer.token_kind(id) {
        Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte) => (b"", bytes),
        Some(TokenKind::Control) if is_named => (&[TokTrie::SPECIAL_TOKEN_MARKER], bytes),
        _ => (b"", b""),
    };
    let bytes = if bytes.len() > MAX_TOKEN_BYTES { b"" } else { bytes };
    let mut word = try_vec(mark.len() + bytes.len(), "the vocabulary of grammars")?;
    word.extend_from_slice(mark);
    word.extend_from_slice(bytes);
    Ok(word)
}

/// A place in a grammar: what was accepted so far.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    option: &'static str,
    n_vocab: usize,
    state: State,
}

#[derive(Clone)]
enum State {
    /// Nothing was computed since the last token.
    Unknown,
    /// These tokens may come.
    Allowed(SimpleVob),
    /// The text is complete, and nothing may follow.
    Complete,
}

impl fmt::Debug for Grammar {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Grammar").field("option", &self.option).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Finds out which tokens may come next; false if the text is complete and none may. Done once for each place.
    ///
    /// # Errors
    /// [`Error::BadGrammar`] when that takes more than the limits allow.
    pub fn prepare(&mut self) -> Result<bool> {
        if let State::Unknown = self.state {
            let matcher = &mut self.matcher;
            let n_vocab = self.n_vocab;
            let computed = panics::caught(|| -> std::result::Result<State, String> {
                if matcher.is_stopped() && !matcher.is_error() {
                    return Ok(State::Complete);
                }
                let mut mask = matcher.compute_mask().map_err(|error| error.to_string())?;
                mask.disallow_token(n_vocab as u32);
                Ok(if mask.is_zero() { State::Complete } else { State::Allowed(mask) })
            });
            self.state = self.checked(computed)?;
        }
        Ok(!matches!(self.state, State::Complete))
    }

    /// The tokens that may come next, bit `id % 32` of word `id / 32`; empty unless [`Grammar::prepare`] said that some may.
    pub(super) fn allowed(&self) -> &[u32] {
        match &self.state {
            State::Allowed(mask) => mask.as_slice(),
            _ => &[],
        }
    }

    /// Whether [`Grammar::prepare`] found that this token may come next.
    pub fn allows(&self, token: u32) -> bool {
        self.allowed().get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Goes on by a token that was allowed.
    ///
    /// # Errors
    /// [`Error::BadGrammar`] when that takes more than the limits allow, or the token was not allowed.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        let consumed = panics::caught(|| self.matcher.consume_token(token));
        self.state = State::Unknown;
        self.checked(consumed)
    }

    /// Another at the same place, with caches of its own.
    ///
    /// # Errors
    /// [`Error::BadGrammar`] when llguidance cannot copy it.
    pub fn fork(&self) -> Result<Grammar> {
        let copied = panics::caught(|| Ok::<_, String>(self.matcher.deep_clone()));
        let matcher = self.checked(copied)?;
        Ok(Grammar { matcher, option: self.option, n_vocab: self.n_vocab, state: State::Unknown })
    }

    /// Goes back by `n` tokens.
    ///
    /// # Errors
    /// [`Error::BadGrammar`] when there were not so many, or the grammar has failed.
    pub fn rewind(&mut self, n: usize) -> Result<()> {
        let rewound = panics::caught(|| self.matcher.rollback(n));
        self.state = State::Unknown;
        self.checked(rewound)
    }

    fn checked<T, E: fmt::Display>(
        &self,
        outcome: std::result::Result<std::result::Result<T, E>, String>,
    ) -> Result<T> {
        let reason = match outcome {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic,
        };
        Err(Error::BadGrammar { option: self.option, reason: short(&reason) })
    }
}
