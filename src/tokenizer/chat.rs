//! The chat template of a model: a Jinja program in the file that turns messages into a prompt.
//!
//! [`ChatTemplate`] runs it in the environment of Hugging Face's `apply_chat_template`. The program comes from an
//! untrusted file, so its work, memory, depth and output are bounded and it can reach nothing but its inputs.
//! [`render_guarded`] keeps the text of messages from becoming control tokens.

mod automaton;
mod bounds;
mod clock;
mod continued;
mod env;
mod filters;
mod guard;
mod json;
mod methods;
mod rewrite;

use std::time::SystemTime;

use minijinja::Environment;
use serde_json::{Map, Value as Json};

use crate::{Error, Result};
use guard::Guard;

pub use guard::ControlTokens;

/// Longest template source in bytes.
pub const MAX_SOURCE: usize = 1 << 18;
/// Longest rendered text in bytes.
pub const MAX_OUTPUT: usize = 16 << 20;
/// Deepest nesting of messages, tools and variables.
pub const MAX_INPUT_DEPTH: usize = 64;

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    /// Its texts and string literals.
    literals: Vec<String>,
}

/// What a template sees besides the messages.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions<'a> {
    /// Whether to end with the header of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Whether to end inside the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// Text of the BOS token; `None` leaves `bos_token` undefined.
    pub bos_token: Option<&'a str>,
    /// Text of the EOS token; `None` leaves `eos_token` undefined.
    pub eos_token: Option<&'a str>,
    /// Descriptions of tools, an array of JSON schemas; `None` is Jinja's `none`.
    pub tools: Option<&'a Json>,
    /// Further variables of the template, such as `enable_thinking`; they win over the ones above.
    pub variables: Option<&'a Map<String, Json>>,
    /// The time that `strftime_now` sees, in UTC; `None` is the system clock.
    pub now: Option<SystemTime>,
}

/// A prompt in which text of messages cannot become a control token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The prompt, to be split at the control tokens' texts.
    pub text: String,
    /// A character that interrupts texts of control tokens which came from messages. It is to be removed after the
    /// split, and occurs nowhere else in `text`.
    pub broken_by: Option<char>,
}

impl Rendered {
    /// The prompt without the character that interrupts texts.
    pub fn plain(mut self) -> String {
        if let Some(marker) = self.broken_by {
            self.text.retain(|c| c != marker);
        }
        self.text
    }
}

impl ChatTemplate {
    /// Compiles the template `source`, `tokenizer.chat_template` of a GGUF file.
    ///
    /// # Errors
    /// [`Error::BadTemplate`] when it is not a template, or larger or deeper than kigo runs.
    pub fn new(source: &str) -> Result<ChatTemplate> {
        if source.len() > MAX_SOURCE {
            return Err(Error::BadTemplate(format!(
                "expected at most {MAX_SOURCE} bytes of source, found {}",
                source.len()
            )));
        }
        let (env, literals) = env::compile(source)?;
        Ok(ChatTemplate { env, literals })
    }

    /// The prompt of `messages`, an array of objects. Texts in it are the caller's word: one that spells a control token
    /// becomes that token.
    ///
    /// # Errors
    /// [`Error::BadTemplate`] when the template fails, raises or exceeds a bound; [`Error::InvalidArgument`] when
    /// `messages` is not an array of objects, is nested deeper than [`MAX_INPUT_DEPTH`], or has no text to go on with.
    pub fn render(&self, messages: &Json, options: &RenderOptions) -> Result<String> {
        Ok(self.run(messages, options, None)?.text)
    }

    fn run(&self, messages: &Json, options: &RenderOptions, guarded: Option<&ControlTokens>) -> Result<Rendered> {
        env::check_inputs(messages, options)?;
        let unused = |messages: &Json| guard::unused_marker(&self.literals, messages, options);
        let tag = options.continue_final_message.then(|| unused(messages)).transpose()?;
        let tagged = tag.map(|tag| continued::tagged(messages, tag)).transpose()?;
        let messages = tagged.as_ref().unwrap_or(messages);
        let guard = match guarded {
            Some(tokens) => Some(Guard::new(tokens, &self.literals, unused(messages)?)),
            None => None,
        };
        let mut text = env::render(&self.env, messages, options, guard.as_ref())?;
        if let Some(tag) = tag {
            text = continued::cut(&text, tag)?;
        }
        let broken_by = guard.map(|guard| guard.marker()).filter(|&marker| text.contains(marker));
        Ok(Rendered { text, broken_by })
    }
}

/// The prompt of `messages`, in which no text of messages, tools or variables can become one of `control_tokens`.
/// Texts are matched as the template leaves them; it sees the interrupted ones.
///
/// # Errors
/// Those of [`ChatTemplate::render`], and [`Error::InvalidArgument`] when the inputs hold all of U+FDD0..U+FDEF.
pub fn render_guarded(
    template: &ChatTemplate,
    messages: &Json,
    options: &RenderOptions,
    control_tokens: &ControlTokens,
) -> Result<Rendered> {
    template.run(messages, options, Some(control_tokens))
}

/// Messages of plain text, as `(role, content)`.
pub fn messages<'a>(turns: impl IntoIterator<Item = (&'a str, &'a str)>) -> Json {
    turns
        .into_iter()
        .map(|(role, content)| {
            let mut message = Map::new();
            message.insert("role".into(), role.into());
            message.insert("content".into(), content.into());
            Json::Object(message)
        })
        .collect()
}
