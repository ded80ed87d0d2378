//! Saving a session to a file, and going on from it: with the same options it is as if it had never been interrupted.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::chat::Chat;
use super::state_file::{StateReader, StateWriter, bad};
use super::text::TextStream;
use super::turn::{Turn, Turns};
use super::{FinishReason, Past, Session, SessionOptions, Times};
use crate::engine::Engine;
use crate::error::try_vec;
use crate::sampler::Sampler;
use crate::{Error, Result};

/// Stands for a number that is not there.
const NONE: u64 = u64::MAX;
/// Longest description of the cache.
const MAX_FORMAT: usize = 1 << 20;

impl Session {
    /// Writes all that going on takes: tokens, turns, the chat, what is in the cache, random numbers used. Options are not part
    /// of it. The file takes the place of another only when it is complete.
    ///
    /// # Errors
    /// [`Error::Io`] names the file; [`Error::OutOfMemory`], those of the device.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.write(path).map_err(|error| match error {
            Error::Io { .. } => error.in_file(path),
            error => error,
        })
    }

    fn write(&self, path: &Path) -> Result<()> {
        let mut file = StateWriter::create(path)?;
        file.u64(self.engine.fingerprint())?;
        file.bytes(self.engine.cache_format().as_bytes())?;
        file.numbers(self.tokens.iter().map(|token| token.to_le_bytes()))?;
        file.u64(self.n_past.get() as u64)?;
        file.u64(self.turns.iter().count() as u64)?;
        for turn in self.turns.iter() {
            file.u64(turn.start as u64)?;
            file.u64(turn.end as u64)?;
            file.u64(turn.drawn)?;
            file.u64(turn.n_messages.map_or(NONE, |n| n as u64))?;
        }
        file.u64(self.sampler.drawn())?;
        let (skipped, limits) = self.sampler.limits();
        file.u64(skipped)?;
        file.numbers(limits.iter().map(|limit| limit.to_bits().to_le_bytes()))?;
        file.u64(self.pending.map_or(NONE, u64::from))?;
        file.u64(self.text.shown() as u64)?;
        file.u32(u32::from(self.finished == Some(FinishReason::EndOfGeneration)))?;
        let chat = self.chat.as_ref().map(Chat::to_json).unwrap_or_default();
        file.bytes(chat.as_bytes())?;
        let mut index = 0;
        while let Some(page) = self.engine.page_read(self.sequence, self.n_past.get(), index)? {
            file.raw(&page)?;
            index += 1;
        }
        file.finish()
    }

    /// A session that goes on from what [`Session::save`] has written, with the options that it was started with, or others.
    ///
    /// # Errors
    /// [`Error::BadState`] when the file is damaged, no state, or that of another model, device or version; [`Error::Io`];
    /// both name the file. [`Error::PromptTooLong`] when the context is too small. Those of [`Session::start`] for options.
    pub fn load(engine: &Arc<Engine>, path: &Path, options: &SessionOptions) -> Result<Session> {
        let mut sampler = Sampler::for_model(options.sampling.clone(), engine.n_vocab(), engine.tokenizer())?;
        let in_file = |error: Error| match error {
            Error::Io { .. } | Error::BadState { .. } => error.in_file(path),
            error => error,
        };
        let mut file = StateReader::open(path).map_err(in_file)?;
        let state = State::read(&mut file, engine).map_err(in_file)?;
        let sequence = engine.sequence_new();
        let mut session = Session {
            engine: engine.clone(),
            sequence,
            options: Arc::new(options.clone()),
            tokens: state.tokens,
            turns: state.turns,
            chat: state.chat,
            // Until all pages are there, so that nobody gets what is not.
            n_past: Past::default(),
            n_cached: state.n_past,
            is_shared: false,
            pending: state.pending,
            text: TextStream::default(),
            finished: state.has_ended.then_some(FinishReason::EndOfGeneration),
            cancel: Arc::new(AtomicBool::new(false)),
            times: Times::since(Instant::now()),
            sampler: Box::default(),
        };
        read_pages(&mut file, engine, sequence, state.n_past).and_then(|()| file.finish()).map_err(in_file)?;
        let start = session.turns.last().start;
        let answer = session.tokens.get(start..).unwrap_or_default();
        sampler.restart(state.drawn, session.grammar_after(answer)?);
        sampler.set_limits(state.skipped, state.limits);
        let pieces = session.pieces(start, session.tokens.len());
        let (text, stopped) = TextStream::replayed(&options.stop, pieces, state.shown);
        session.text = text;
        if stopped {
            session.finished = Some(FinishReason::StopString);
        } else if session.finished.is_some() {
            session.text.finish();
        }
        *session.sampler = sampler;
        session.n_past.set(state.n_past);
        Ok(session)
    }
}

fn read_pages(file: &mut StateReader, engine: &Engine, sequence: u64, n_past: usize) -> Result<()> {
    let total = engine.pages_bytes(n_past)?;
    if total != file.left() {
        return Err(bad("the cache", format!("{total} bytes"), format!("{} bytes", file.left())));
    }
    if n_past > 0 {
        engine.sequence_restore(sequence, n_past)?;
    }
    let mut index = 0;
    while let Some(n) = engine.page_bytes(n_past, index)? {
        let mut page = try_vec(n, "the state")?;
        page.resize(n, 0);
        file.raw(&mut page, "the cache")?;
        engine.page_write(sequence, n_past, index, page)?;
        index += 1;
    }
    Ok(())
}

/// What stands in the file before the pages.
struct State {
    tokens: Vec<u32>,
    n_past: usize,
    turns: Turns,
    drawn: u64,
    skipped: u64,
    limits: Vec<f64>,
    pending: Option<u32>,
    shown: usize,
    has_ended: bool,
    chat: Option<Chat>,
}

impl State {
    fn read(file: &mut StateReader, engine: &Engine) -> Result<State> {
        let fingerprint = file.u64("fingerprint")?;
        if fingerprint != engine.fingerprint() {
            let shown = |number: u64| format!("{number:016x}");
            let expected = format!("{}, that of this model", shown(engine.fingerprint()));
            return Err(bad(
                "fingerprint",
                expected,
                format!("{}; load the model it was saved with", shown(fingerprint)),
            ));
        }
        let format = file.bytes(MAX_FORMAT, "format of the cache")?;
        if format != engine.cache_format().as_bytes() {
            let found = crate::error::quoted(&format);
            let expected = format!("{:.100}; save and load on one device and with one n_ctx", engine.cache_format());
            return Err(bad("format of the cache", expected, found));
        }
        let tokens = tokens(file, engine)?;
        let n = tokens.len();
        let n_past = file.size(n, "tokens in the cache")?;
        let turns = turns(file, n)?;
        let (drawn, skipped) = (file.u64("random numbers")?, file.u64("limits of mirostat")?);
        let bytes = file.bytes(usize::MAX, "limits of mirostat")?;
        let mut limits = try_vec(bytes.len() / 8, "the limits of mirostat")?;
        limits.extend(bytes.as_chunks().0.iter().map(|bits| f64::from_bits(u64::from_le_bytes(*bits))));
        let pending = match file.u64("the last token")? {
            NONE => None,
            token => match u32::try_from(token).ok().filter(|token| (*token as usize) < engine.n_vocab()) {
                Some(token) => Some(token),
                None => return Err(bad("the last token", "one of the vocabulary", token)),
            },
        };
        let shown = file.size(usize::MAX, "bytes of text")?;
        let has_ended = file.u32("whether it has ended")? == 1;
        let chat = file.bytes(usize::MAX, "the chat")?;
        let chat = match std::str::from_utf8(&chat) {
            Ok("") => None,
            Ok(json) => Some(Chat::from_json(json).ok_or_else(|| bad("the chat", "a chat", "something else"))?),
            Err(_) => return Err(bad("the chat", "UTF-8", "something else")),
        };
        Ok(State { tokens, n_past, turns, drawn, skipped, limits, pending, shown, has_ended, chat })
    }
}

fn tokens(file: &mut StateReader, engine: &Engine) -> Result<Vec<u32>> {
    let bytes = file.bytes(usize::MAX, "tokens")?;
    let n = bytes.len() / 4;
    if n > engine.n_ctx() {
        return Err(Error::PromptTooLong { found: n, n_ctx: engine.n_ctx() });
    }
    let mut tokens = try_vec(n, "the tokens of the inference")?;
    tokens.extend(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)));
    match tokens.iter().find(|token| **token as usize >= engine.n_vocab()) {
        Some(token) => Err(bad("tokens", format!("ids below {}", engine.n_vocab()), token)),
        None if tokens.is_empty() => Err(bad("tokens", "at least one", "none")),
        None => Ok(tokens),
    }
}

/// Turns that follow each other in `n` tokens.
fn turns(file: &mut StateReader, n: usize) -> Result<Turns> {
    let mut turns: Option<Turns> = None;
    let (count, mut least) = (file.size(n, "turns")?, 0);
    for index in 0..count {
        let (start, end) = (file.size(n, "turn")?, file.u64("turn")?);
        let (drawn, n_messages) = (file.u64("turn")?, file.u64("turn")?);
        let n_messages = usize::try_from(n_messages).ok().filter(|_| n_messages != NONE);
        let is_last = index + 1 == count;
        let end = if is_last { usize::MAX } else { usize::try_from(end).unwrap_or(usize::MAX) };
        if start < least.max(1) || end < start || (end > n && !is_last) {
            return Err(bad("turn", "one after the other", format!("{start} to {end}")));
        }
        least = end;
        let turn = Turn { start, end, drawn, n_messages };
        match &mut turns {
            Some(turns) => turns.add(turn)?,
            None => turns = Some(Turns::new(turn)),
        }
    }
    turns.ok_or_else(|| bad("turns", "at least one", "none"))
}
