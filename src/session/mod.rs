//! One generation: prompt, prefill, next token, stop rules, text; and what follows when it goes back, branches or goes on.

mod append;
mod chat;
mod fork;
mod prompt;
mod rewind;
mod state;
mod state_file;
mod text;
mod turn;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::backend::{Row, SequenceId};
use crate::engine::Engine;
use crate::error::try_vec;
use crate::sampler::{Grammar, GrammarText, Sampler, SamplingParams};
use crate::{Error, Result};
use chat::Chat;
pub use chat::read_template;
pub use prompt::render as render_prompt;
use prompt::tokenize;
use text::TextStream;
use turn::{Turn, Turns};

/// What the model is asked.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// Plain text, with BOS where the model wants it. Nothing in it becomes a control token.
    Text(&'a str),
    /// One message of a user, put into the model's chat template.
    User(&'a str),
    /// A chat in JSON, put into a chat template: an array of messages, or an object with them and more.
    Chat(&'a str),
    /// Token ids, as they are.
    Tokens(&'a [u32]),
    /// Text in which control tokens count, with BOS where the model wants it and the text does not begin with it.
    Rendered(&'a str),
    /// [`Prompt::Rendered`] if it holds a control token or the model has no chat template, else [`Prompt::User`].
    RenderedOrUser(&'a str),
}

/// How to generate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SessionOptions {
    /// How a token is chosen.
    pub sampling: SamplingParams,
    /// What the generated text must follow.
    pub grammar: Option<GrammarText>,
    /// Most tokens to generate; as many as the context takes when `None`.
    pub max_tokens: Option<usize>,
    /// Texts that end the generation and are not part of it.
    pub stop: Vec<String>,
    /// A chat template to use instead of the model's own.
    pub template: Option<String>,
    /// Which of the model's chat templates to use. When `None`: `tool_use` if there are tools and it is there, else
    /// `default`.
    pub template_name: Option<String>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    EndOfGeneration,
    /// A stop string came.
    StopString,
    /// [`SessionOptions::max_tokens`] were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// It was cancelled.
    Cancelled,
    /// The grammar is complete, and allows nothing more.
    Grammar,
}

/// A running generation. A session is one thread's at a time; [`Session::cancel_flag`] is everybody's.
pub struct Session {
    engine: Arc<Engine>,
    sequence: SequenceId,
    sampler: Box<Sampler>,
    options: Arc<SessionOptions>,
    /// Prompts and generated tokens of all turns, in order.
    tokens: Vec<u32>,
    turns: Turns,
    /// What has been said, where the prompts are a chat.
    chat: Option<Chat>,
    /// How many of `tokens` are in the KV cache, or in a step that a device runs.
    n_past: Past,
    /// How many of the prompt's tokens were in the cache when it began.
    n_cached: usize,
    /// Whether other sequences may begin with the prompt of this one.
    is_shared: bool,
    /// The last generated token, while the caller has not taken it.
    pending: Option<u32>,
    text: TextStream,
    finished: Option<FinishReason>,
    cancel: Arc<AtomicBool>,
    times: Times,
}

/// A number of tokens at which others may look while a call runs.
#[derive(Debug, Clone, Default)]
pub struct Past(Arc<AtomicUsize>);

impl Past {
    fn new(n: usize) -> Past {
        Past(Arc::new(AtomicUsize::new(n)))
    }

    /// How many there are at the moment.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, n: usize) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// Where the time of a turn goes.
struct Times {
    started: Instant,
    prompt: Duration,
    generate: Duration,
    queue: Duration,
    /// From the start to the first token, idle time of the caller included.
    first_token: Option<Duration>,
}

impl Times {
    /// Those of a turn that started then.
    fn since(started: Instant) -> Times {
        Times { started, prompt: Duration::ZERO, generate: Duration::ZERO, queue: Duration::ZERO, first_token: None }
    }
}

impl Session {
    /// Tokenises the prompt and checks that it fits; the model runs in the first call for a token.
    ///
    /// # Errors
    /// A prompt that is empty, too long, or no message list; a bad template; parameters out of range.
    pub fn start(engine: &Arc<Engine>, prompt: Prompt, options: &SessionOptions) -> Result<Session> {
        let started = Instant::now();
        let mut sampler = Sampler::for_model(options.sampling.clone(), engine.n_vocab(), engine.tokenizer())?;
        let (tokens, chat) = tokenize(engine, prompt, options)?;
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if tokens.len() >= engine.n_ctx() {
            return Err(Error::PromptTooLong { found: tokens.len(), n_ctx: engine.n_ctx() });
        }
        if let Some(grammar) = &options.grammar {
            sampler.set_grammar(engine.grammars()?.start(grammar)?);
        }
        Ok(Session {
            sequence: engine.sequence_new(),
            engine: engine.clone(),
            sampler: Box::new(sampler),
            options: Arc::new(options.clone()),
            turns: Turns::new(Turn::new(tokens.len(), 0, chat.as_ref())),
            tokens,
            chat,
            n_past: Past::default(),
            n_cached: 0,
            is_shared: false,
            pending: None,
            text: TextStream::new(&options.stop),
            finished: None,
            cancel: Arc::new(AtomicBool::new(false)),
            times: Times::since(started),
        })
    }

    /// The model.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Set it from any thread to end the generation: at once while it waits for others, else after a layer of its batch or
    /// two parts of it (see [`crate::backend::Stop`]), or all of it in company.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.cancel.clone()
    }

    /// Text that has not been taken, generated now if there is none; `None` at the end. A piece is complete UTF-8.
    ///
    /// # Errors
    /// [`Error::ContextFull`], [`Error::Cancelled`], [`Error::Numeric`], [`Error::NoCandidate`], [`Error::BadGrammar`],
    /// [`Error::OutOfMemory`]; nothing is lost, and the same call may be made again.
    pub fn peek_text(&mut self) -> Result<Option<&str>> {
        while self.text.ready().is_empty() && self.finished_ok()?.is_none() {
            self.advance()?;
        }
        let text = self.text.ready();
        Ok((!text.is_empty()).then_some(text))
    }

    /// Takes the text that [`Self::peek_text`] returned.
    pub fn take_text(&mut self) {
        self.text.clear_ready();
        self.pending = None;
    }

    /// The next token and its bytes, generated now if it has been taken; `None` at the end. A token has no bytes
    /// when it is a control token. The token that completes a stop string does not come.
    ///
    /// # Errors
    /// As [`Self::peek_text`].
    pub fn peek_token(&mut self) -> Result<Option<(u32, &[u8])>> {
        while self.pending.is_none() && self.finished_ok()?.is_none() {
            self.advance()?;
        }
        Ok(self.pending.map(|token| (token, self.engine.tokenizer().token_bytes(token, false))))
    }

    /// Takes the token that [`Self::peek_token`] returned.
    pub fn take_token(&mut self) {
        self.take_text();
    }

    /// Why the generation ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    /// The logits of the last token that was drawn, `[n_vocab]`, and the token; `None` before the first. They are kept
    /// if [`SamplingParams::logprobs`] is not 0.
    pub fn last_logits(&self) -> Option<(u32, &[f32])> {
        self.sampler.last()
    }

    /// How the session samples.
    pub fn sampling(&self) -> &SamplingParams {
        self.sampler.params()
    }

    /// How many of all tokens, those of the prompt first, have been given to the model or were in the cache already. It grows step by
    /// step while a call computes the prompt; a GPU may still be computing the last of them.
    pub fn past(&self) -> Past {
        self.n_past.clone()
    }

    /// Tokens in the prompt: all tokens before the answer, those of earlier turns included.
    pub fn prompt_tokens(&self) -> usize {
        self.turns.last().start
    }

    /// Tokens of the prompt that were taken from the cache, since this or another inference had computed them.
    pub fn cached_tokens(&self) -> usize {
        self.n_cached
    }

    /// Tokens generated so far in this turn; a token that completes a stop string counts, an end-of-generation token does not.
    pub fn generated_tokens(&self) -> usize {
        self.tokens.len() - self.turns.last().start
    }

    /// Time spent on the prompt of this turn, the first token included.
    pub fn prompt_time(&self) -> Duration {
        self.times.prompt
    }

    /// Time spent on all tokens of this turn after the first.
    pub fn generate_time(&self) -> Duration {
        self.times.generate
    }

    /// Time that its rows waited for batches of others to end; part of the other two.
    pub fn queue_time(&self) -> Duration {
        self.times.queue
    }

    /// Time from the call that started the session to its first token, whatever the caller did meanwhile; `None` before
    /// there is one.
    pub fn first_token_time(&self) -> Option<Duration> {
        self.times.first_token
    }

    /// The reason, if it is not one that a caller must be told as an error, over and over.
    fn finished_ok(&self) -> Result<Option<FinishReason>> {
        match self.finished {
            Some(FinishReason::ContextFull) => Err(Error::ContextFull { n_ctx: self.engine.n_ctx() }),
            Some(FinishReason::Cancelled) => Err(Error::Cancelled),
            reason => Ok(reason),
        }
    }

    /// Generates one token, or finds that the generation has ended.
    fn advance(&mut self) -> Result<()> {
        if self.options.max_tokens.is_some_and(|most| self.generated_tokens() >= most) {
            self.finish(FinishReason::MaxTokens);
            return Ok(());
        }
        if self.tokens.len() >= self.engine.n_ctx() {
            self.finish(FinishReason::ContextFull);
            return Ok(());
        }
        self.tokens.try_reserve(1).map_err(|_| Error::OutOfMemory {
            what: "the tokens of the inference".into(),
            bytes: size_of_val(&*self.tokens) as u64,
        })?;
        let started = Instant::now();
        if !self.sampler.prepare()? {
            self.finish(FinishReason::Grammar);
            return Ok(());
        }
        let is_prompt = self.generated_tokens() == 0;
        let token = self.next_token();
        *(if is_prompt { &mut self.times.prompt } else { &mut self.times.generate }) += started.elapsed();
        let token = token?;
        self.times.first_token.get_or_insert_with(|| self.times.started.elapsed());
        self.accept(token)
    }

    /// Runs the tokens that are not in the KV cache, in chunks, and draws the token after the last one.
    fn next_token(&mut self) -> Result<u32> {
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                self.finish(FinishReason::Cancelled);
                return Err(Error::Cancelled);
            }
            if self.n_past.get() == 0 {
                self.n_cached = self.engine.sequence_begin(self.sequence, &self.tokens, &self.cancel)?;
                self.n_past.set(self.n_cached);
            }
            // The last token is run again where it was run without an outcome.
            let start = self.n_past.get().min(self.tokens.len().saturating_sub(1));
            let end = self.tokens.len().min(start + self.engine.chunk(start));
            let row = |position: usize| Row {
                token: self.tokens[position],
                position: position as u32,
                sequence: self.sequence,
                logits: position + 1 == self.tokens.len(),
            };
            let mut rows = try_vec(end - start, "the rows of a batch")?;
            rows.extend((start..end).map(row));
            let outcome = if end < self.tokens.len() {
                let ran = self.engine.run(rows, &mut Vec::new(), &self.cancel);
                ran.map(|(n, waited)| (None, start + n, waited))
            } else {
                let recent = self.sampler.window_of(&self.tokens)?;
                let drawn = self.engine.next_token(rows, &mut self.sampler, recent, &self.cancel);
                drawn.map(|(token, waited)| (Some(token), end, waited))
            };
            if matches!(outcome, Err(Error::Cancelled)) {
                self.finish(FinishReason::Cancelled);
            }
            // Without a token the last tokens run again, which changes nothing.
            let (token, n_past, waited) = outcome?;
            self.times.queue += waited;
            self.n_past.set(n_past);
            if let Some(token) = token {
                if !std::mem::replace(&mut self.is_shared, true) {
                    self.engine.sequence_share(self.sequence, &self.tokens);
                }
                return Ok(token);
            }
        }
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        let tokenizer = self.engine.tokenizer();
        if tokenizer.is_eog(token) {
            self.finish(FinishReason::EndOfGeneration);
            return Ok(());
        }
        self.sampler.accept(token)?;
        self.tokens.push(token);
        if self.text.push(tokenizer.token_bytes(token, false)) {
            self.finish(FinishReason::StopString);
            return Ok(());
        }
        self.pending = Some(token);
        Ok(())
    }

    /// The bytes of the tokens from `start` to `end`.
    fn pieces(&self, start: usize, end: usize) -> impl Iterator<Item = &[u8]> {
        let tokens = self.tokens.get(start..end).unwrap_or_default();
        tokens.iter().map(|token| self.engine.tokenizer().token_bytes(*token, false))
    }

    /// The grammar of an answer, after `tokens` of it.
    fn grammar_after(&self, tokens: &[u32]) -> Result<Option<Grammar>> {
        let Some(text) = &self.options.grammar else { return Ok(None) };
        let mut grammar = self.engine.grammars()?.start(text)?;
        tokens.iter().try_for_each(|token| grammar.accept(*token))?;
        Ok(Some(grammar))
    }

    fn finish(&mut self, reason: FinishReason) {
        if !matches!(reason, FinishReason::StopString | FinishReason::Cancelled) {
            self.text.finish();
        }
        self.finished = Some(reason);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut tokens = std::mem::take(&mut self.tokens);
        tokens.truncate(self.n_past.get());
        self.engine.sequence_end(self.sequence, tokens);
    }
}
