//! What is done to the source of a template before it is compiled.
//!
//! minijinja counts the instructions and bytes of a rendering, but it compiles expressions by recursion over operator
//! chains of any length, and compares, prints, hashes and frees values by recursion over nesting of any depth, however
//! often parts are shared. So the source is checked for depth here, and where it makes containers or stores values, a
//! filter of [`super::bounds`] is put in:
//!
//! * `[..]`, `{..}`, `(.., ..)` and calls of the filters in [`MAKERS`] go through [`BOUNDED`];
//! * so does `x` in `{% set y = x %}`, and through [`MEMBER`] if the target is an attribute;
//! * both sides of `*` go through [`FACTOR`].
//!
//! minijinja has no `%` for strings: `'..' % x` becomes a call of the filter [`PERCENT`].
//!
//! `{% generation %}`, which Hugging Face adds to Jinja to mark the assistant's text, becomes `{% with %}`.
//!
//! The tokens are minijinja's own, so both see the same source.

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::bounds::{BOUNDED, FACTOR, MEMBER};
use super::filters::PERCENT;

/// Deepest nesting of blocks.
const MAX_BLOCKS: usize = 32;
/// Deepest nesting of brackets.
const MAX_BRACKETS: usize = 16;
/// Most operators on the way from an expression's root to a leaf, as far as tokens tell.
const MAX_OPERATORS: usize = 128;
/// Longest chain of `elif`.
const MAX_ELIF: usize = 64;
/// Filters whose result can hold one value many times.
const MAKERS: [&str; 4] = ["batch", "groupby", "map", "slice"];
/// Words after which an operand begins.
const OPERATOR_WORDS: [&str; 8] = ["and", "elif", "else", "if", "in", "is", "not", "or"];
/// Statements that go on until their `end`.
const BLOCKS: [&str; 8] = ["autoescape", "block", "call", "filter", "for", "generation", "if", "macro"];

/// A template that is fit to be compiled.
pub struct Rewritten {
    /// The source to compile.
    pub source: String,
    /// Its texts and string literals.
    pub literals: Vec<String>,
}

/// Rewrites `source`, or says what is wrong with it.
pub fn rewrite(source: &str, syntax: SyntaxConfig) -> Result<Rewritten, String> {
    let mut scan = Scan::default();
    let mut literals = Vec::new();
    for token in tokenize(source, false, syntax) {
        let (token, span) = token.map_err(|e| super::env::describe(&e))?;
        scan.token(&token, span).map_err(|what| format!("line {}: {what}", span.start_line))?;
        scan.before = Before {
            end: span.end_offset as usize,
            operand: scan.before.is_dot || ends_operand(&token),
            is_dot: matches!(token, Token::Dot),
            is_string: matches!(token, Token::Str(_) | Token::String(_)),
        };
        match token {
            Token::TemplateData(text) | Token::Str(text) => literals.push(text.to_string()),
            Token::String(text) => literals.push(text.into_string()),
            _ => {}
        }
    }
    scan.edits.sort_by_key(|edit| edit.at);
    let mut out = String::with_capacity(source.len() + scan.edits.len() * 16);
    let mut from = 0;
    for edit in scan.edits {
        // Offsets are those of tokens of this very source.
        out.push_str(source.get(from..edit.at).unwrap_or_default());
        out.push_str(&edit.text);
        from = edit.at + edit.removed;
    }
    out.push_str(source.get(from..).unwrap_or_default());
    Ok(Rewritten { source: out, literals })
}

/// Whether an operator can follow `token`, unless a dot makes it a name.
fn ends_operand(token: &Token) -> bool {
    match token {
        Token::Ident(word) => !OPERATOR_WORDS.contains(word),
        Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) => true,
        Token::BracketClose | Token::ParenClose | Token::BraceClose => true,
        _ => false,
    }
}

/// Text to insert at a byte of the source, after removing some.
struct Edit {
    at: usize,
    removed: usize,
    text: String,
}

/// An open bracket, or the tag around all brackets.
#[derive(Default)]
struct Level {
    /// Operators since the last comma.
    operators: usize,
    /// Where it opened, if it makes a container (for a parenthesis: once it holds a comma).
    literal: Option<usize>,
    is_paren: bool,
    has_comma: bool,
    /// `*` waits for the end of its right side.
    factor: bool,
    /// [`PERCENT`] waits for the end of its argument.
    percent: bool,
    /// Filter to put behind the closing bracket: that of a call.
    maker: bool,
}

/// What the part of the tag is that comes next.
#[derive(Default, PartialEq)]
enum Part {
    #[default]
    Expression,
    /// Behind `{%`.
    Keyword,
    /// Between `for` and `in`, or `set` and `=`; whether it has an attribute.
    Target { set: bool, attribute: bool },
    /// Behind `=` of `set`.
    Value { attribute: bool },
}

/// The token before.
#[derive(Default)]
struct Before {
    end: usize,
    /// Whether an operator can follow.
    operand: bool,
    is_dot: bool,
    is_string: bool,
}

#[derive(Default)]
struct Scan {
    edits: Vec<Edit>,
    /// The open blocks, each with its `elif`s.
    blocks: Vec<usize>,
    /// The levels of the current tag.
    levels: Vec<Level>,
    part: Part,
    /// The name of a filter may come.
    piped: bool,
    /// The filter named last makes containers; its arguments may come.
    maker: bool,
    before: Before,
}

impl Scan {
    fn insert(&mut self, at: usize, text: impl Into<String>) {
        self.edits.push(Edit { at, removed: 0, text: text.into() });
    }

    fn level(&mut self) -> &mut Level {
        if self.levels.is_empty() {
            self.levels.push(Level::default());
        }
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    fn token(&mut self, token: &Token, span: Span) -> Result<(), String> {
        self.finish_operand(token);
        match token {
            Token::TemplateData(_) => return Ok(()),
            Token::VariableStart | Token::BlockStart => {
                self.levels = vec![Level::default()];
                self.part = if matches!(token, Token::BlockStart) { Part::Keyword } else { Part::Expression };
                return Ok(());
            }
            Token::VariableEnd | Token::BlockEnd => {
                self.end_tag();
                return Ok(());
            }
            _ => {}
        }
        if self.part == Part::Keyword {
            self.part = Part::Expression;
            if let Token::Ident(word) = token {
                return self.keyword(word, span);
            }
        }
        match token {
            Token::BracketOpen | Token::ParenOpen | Token::BraceOpen => self.open(token, span)?,
            Token::BracketClose | Token::ParenClose | Token::BraceClose => self.close(span),
            Token::Comma => {
                let level = self.level();
                level.operators = 0;
                level.has_comma = true;
            }
            Token::Assign => {
                if let (1, Part::Target { set: true, attribute }) = (self.levels.len(), &self.part) {
                    self.part = Part::Value { attribute: *attribute };
                    self.insert(span.end_offset as usize, "(");
                }
            }
            Token::Ident(word) => {
                if self.piped {
                    self.maker = MAKERS.contains(word);
                } else if OPERATOR_WORDS.contains(word) && !self.before.is_dot {
                    self.level().operators += 1;
                    if *word == "in" && self.levels.len() == 1 && matches!(self.part, Part::Target { set: false, .. }) {
                        self.part = Part::Expression;
                    }
                }
            }
            Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_) | Token::Colon => {}
            _ => {
                if let (Token::Dot, Part::Target { attribute, .. }) = (token, &mut self.part) {
                    *attribute = true;
                }
                // Without an operand before it, it is the `*` of arguments.
                if matches!(token, Token::Mul) && self.before.operand {
                    self.insert(self.before.end, format!("|{FACTOR} "));
                    self.level().factor = true;
                }
                if matches!(token, Token::Mod) && self.before.is_string {
                    let at = span.start_offset as usize;
                    self.edits.push(Edit { at, removed: 1, text: format!("|{PERCENT}(") });
                    self.level().percent = true;
                }
                self.level().operators += 1;
            }
        }
        self.piped = matches!(token, Token::Pipe);
        let operators: usize = self.levels.iter().map(|level| level.operators).sum();
        if operators > MAX_OPERATORS {
            return Err(format!("expected at most {MAX_OPERATORS} operators in an expression, found more"));
        }
        Ok(())
    }

    /// Puts in the filters that wait for the end of the operand before `next`.
    fn finish_operand(&mut self, next: &Token) {
        if !self.before.operand {
            return;
        }
        let at = self.before.end;
        if self.maker && !matches!(next, Token::ParenOpen) {
            self.maker = false;
            self.insert(at, format!("|{BOUNDED} "));
        }
        // Strings side by side are one.
        let goes_on =
            matches!(next, Token::Dot | Token::BracketOpen | Token::ParenOpen | Token::Str(_) | Token::String(_));
        if goes_on || self.levels.is_empty() {
            return;
        }
        if std::mem::take(&mut self.level().factor) {
            self.insert(at, format!("|{FACTOR} "));
        }
        if !matches!(next, Token::Pipe) && std::mem::take(&mut self.level().percent) {
            self.insert(at, ")");
        }
    }

    fn keyword(&mut self, word: &str, span: Span) -> Result<(), String> {
        let (at, removed) = (span.start_offset as usize, (span.end_offset - span.start_offset) as usize);
        match word {
            "generation" => self.edits.push(Edit { at, removed, text: "with".into() }),
            "endgeneration" => self.edits.push(Edit { at, removed, text: "endwith".into() }),
            "for" => self.part = Part::Target { set: false, attribute: false },
            "set" => self.part = Part::Target { set: true, attribute: false },
            "elif" => {
                if let Some(elifs) = self.blocks.last_mut() {
                    *elifs += 1;
                }
                if self.blocks.iter().sum::<usize>() > MAX_ELIF {
                    return Err(format!("expected at most {MAX_ELIF} elif, found more"));
                }
            }
            _ => {}
        }
        if BLOCKS.contains(&word) || word == "with" {
            self.blocks.push(0);
            if self.blocks.len() > MAX_BLOCKS {
                return Err(format!("expected at most {MAX_BLOCKS} nested blocks, found more"));
            }
        } else if word.starts_with("end") {
            self.blocks.pop();
        }
        Ok(())
    }

    fn open(&mut self, token: &Token, span: Span) -> Result<(), String> {
        let in_target = matches!(self.part, Part::Target { .. });
        let literal = (!self.before.operand && !in_target).then_some(span.start_offset as usize);
        let maker = std::mem::take(&mut self.maker);
        self.level().operators += 1;
        self.levels.push(Level { literal, is_paren: matches!(token, Token::ParenOpen), maker, ..Level::default() });
        // The first level is the tag's own.
        if self.levels.len() > MAX_BRACKETS + 1 {
            return Err(format!("expected at most {MAX_BRACKETS} nested brackets, found more"));
        }
        Ok(())
    }

    fn close(&mut self, span: Span) {
        // The tag's own level stays; an unmatched bracket is for the parser to refuse.
        if self.levels.len() < 2 {
            return;
        }
        let Some(level) = self.levels.pop() else { return };
        let end = span.end_offset as usize;
        match level.literal {
            Some(start) if !level.is_paren || level.has_comma => {
                self.insert(start, "(");
                self.insert(end, format!("|{BOUNDED})"));
            }
            _ => {}
        }
        if level.maker {
            self.insert(end, format!("|{BOUNDED} "));
        }
    }

    fn end_tag(&mut self) {
        let at = self.before.end;
        match std::mem::take(&mut self.part) {
            Part::Value { attribute } => {
                self.insert(at, format!(")|{}", if attribute { MEMBER } else { BOUNDED }));
            }
            // The block form of `set`, with a filter or without.
            Part::Target { set: true, attribute } => {
                if self.level().operators > usize::from(attribute) {
                    self.insert(at, format!("|{}", if attribute { MEMBER } else { BOUNDED }));
                }
                self.blocks.push(0);
            }
            _ => {}
        }
        self.levels.clear();
    }
}
