//! A chat as callers describe it, in JSON with the names that servers for chats use.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::engine::Engine;
use crate::tokenizer::chat::{self, ChatTemplate, RenderOptions, Rendered};
use crate::{Error, Result};

/// Keys of a chat that is an object.
const KEYS: [&str; 6] =
    ["messages", "tools", "documents", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"];

/// The template that is taken where there are tools and the model has it.
const TOOL_USE: &str = "tool_use";

/// The role of the model.
const ASSISTANT: &str = "assistant";

/// What a template is to render.
#[derive(Debug, Clone)]
pub struct Chat {
    messages: Value,
    tools: Option<Value>,
    /// Variables of the template, `documents` among them.
    variables: Map<String, Value>,
    add_generation_prompt: bool,
    continue_final_message: bool,
}

impl Chat {
    /// One message of a user.
    pub fn user(text: &str) -> Chat {
        Chat {
            messages: chat::messages([("user", text)]),
            tools: None,
            variables: Map::new(),
            add_generation_prompt: true,
            continue_final_message: false,
        }
    }

    /// The chat that `json` is: an array of messages, or an object with some of [`KEYS`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the key that is wrong.
    pub fn parse(json: &str) -> Result<Chat> {
        let shape = "a JSON array of messages, or an object with them as \"messages\"";
        let value = serde_json::from_str(json).map_err(|e| Error::invalid_argument("prompt", shape, e))?;
        let mut fields = match value {
            Value::Array(_) => Map::from_iter([("messages".to_string(), value)]),
            Value::Object(fields) => fields,
            _ => return Err(Error::invalid_argument("prompt", shape, "something else")),
        };
        if let Some(key) = fields.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let found = crate::error::quoted(key.as_bytes());
            return Err(Error::invalid_argument("prompt", format!("the keys {}", KEYS.join(", ")), found));
        }
        let mut take = |key: &str| fields.remove(key).filter(|value| !value.is_null());
        let mut messages = take("messages").ok_or_else(|| Error::invalid_argument("prompt", shape, "no messages"))?;
        parse_arguments(&mut messages);
        let mut flag = |key: &'static str| match take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(Error::invalid_argument(key, "true or false", "something else")),
        };
        let continue_final_message = flag("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt = flag("add_generation_prompt")?.unwrap_or(!continue_final_message);
        if add_generation_prompt && continue_final_message {
            let expected = "false where continue_final_message is true";
            return Err(Error::invalid_argument("add_generation_prompt", expected, true));
        }
        let mut objects = |key: &'static str| match take(key) {
            Some(Value::Array(items)) if items.iter().all(Value::is_object) => Ok(Some(Value::Array(items))),
            None => Ok(None),
            Some(_) => Err(Error::invalid_argument(key, "an array of objects", "something else")),
        };
        // No tools are none: templates ask whether there is a list, not whether it is empty.
        let tools = objects("tools")?.filter(|tools| tools.as_array().is_some_and(|tools| !tools.is_empty()));
        let documents = objects("documents")?;
        let mut variables = match take("chat_template_kwargs") {
            None => Map::new(),
            Some(Value::Object(variables)) => variables,
            Some(_) => return Err(Error::invalid_argument("chat_template_kwargs", "an object", "something else")),
        };
        if let Some(documents) = documents {
            variables.insert("documents".to_string(), documents);
        }
        Ok(Chat { messages, tools, variables, add_generation_prompt, continue_final_message })
    }

    /// The chat with all its variables, for [`Chat::from_json`].
    pub fn to_json(&self) -> String {
        let Chat { messages, tools, variables, add_generation_prompt, continue_final_message } = self;
        serde_json::json!([messages, tools, variables, add_generation_prompt, continue_final_message]).to_string()
    }

    /// What [`Chat::to_json`] has written; `None` for anything else.
    pub fn from_json(json: &str) -> Option<Chat> {
        let (messages, tools, variables, add_generation_prompt, continue_final_message) =
            serde_json::from_str(json).ok()?;
        Some(Chat { messages, tools, variables, add_generation_prompt, continue_final_message })
    }

    /// How many messages there are.
    pub fn n_messages(&self) -> usize {
        self.messages.as_array().map_or(0, Vec::len)
    }

    /// Takes away all messages but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        if let Some(messages) = self.messages.as_array_mut() {
            messages.truncate(n);
        }
    }

    /// Adds what the model has answered, if `answer` says so, and then what `next` brings: its messages, and tools and
    /// variables if it has some. If its first message is the assistant's, it stands for the answer.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the messages of either are no array.
    pub fn go_on(&mut self, answer: Option<&str>, next: Chat) -> Result<()> {
        let no_array = || Error::invalid_argument("prompt", "messages in an array", "something else");
        let Value::Array(more) = next.messages else { return Err(no_array()) };
        let messages = self.messages.as_array_mut().ok_or_else(no_array)?;
        let is_answer = more.first().is_some_and(|message| message.get("role") == Some(&ASSISTANT.into()));
        if let Some(answer) = answer.filter(|_| !is_answer) {
            let last = messages.last_mut().filter(|_| self.continue_final_message);
            match last.and_then(|message| message.get_mut("content")) {
                Some(Value::String(content)) => content.push_str(answer),
                _ => messages.push(serde_json::json!({ "role": ASSISTANT, "content": answer })),
            }
        }
        messages.extend(more);
        self.tools = next.tools.or(self.tools.take());
        self.variables.extend(next.variables);
        self.add_generation_prompt = next.add_generation_prompt;
        self.continue_final_message = next.continue_final_message;
        Ok(())
    }

    /// The prompt, rendered with `template`, or with the template of `engine` that is called `name`, or with its
    /// default for this chat. What messages say stays text; only the template makes control tokens.
    ///
    /// # Errors
    /// [`Error::BadTemplate`] when there is no such template or it fails; [`Error::InvalidArgument`] when messages or
    /// tools are not what a template takes.
    pub fn render(&self, engine: &Engine, template: Option<&str>, name: Option<&str>) -> Result<Rendered> {
        let own = template.map(ChatTemplate::new).transpose()?;
        let has_tool_use = || engine.chat_template_names().any(|name| name == TOOL_USE);
        let template = match (&own, name) {
            (Some(template), _) => template,
            (None, Some(name)) => engine.chat_template(name)?,
            (None, None) if self.tools.is_some() && has_tool_use() => engine.chat_template(TOOL_USE)?,
            (None, None) => engine.chat_template(Engine::DEFAULT_TEMPLATE)?,
        };
        let tokenizer = engine.tokenizer();
        let text_of = |id: Option<u32>| id.and_then(|id| std::str::from_utf8(tokenizer.token_bytes(id, true)).ok());
        let options = RenderOptions {
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            bos_token: text_of(tokenizer.bos()),
            eos_token: text_of(tokenizer.eos()),
            tools: self.tools.as_ref(),
            variables: Some(&self.variables),
            now: None,
        };
        chat::render_guarded(template, &self.messages, &options, engine.control_tokens())
    }
}

/// The chat template in the file at `path`.
///
/// # Errors
/// [`Error::Io`] when it cannot be read; [`Error::BadTemplate`] when it is longer than [`chat::MAX_SOURCE`] or not UTF-8.
pub fn read_template(path: &Path) -> Result<String> {
    let read = || {
        let mut bytes = Vec::new();
        let file = crate::gguf::open_regular(path)?;
        let read = file.take(chat::MAX_SOURCE as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|source| Error::Io { operation: "read".to_string(), source })?;
        if !(1..=chat::MAX_SOURCE).contains(&bytes.len()) {
            let found = if bytes.is_empty() { "none" } else { "more" };
            return Err(Error::BadTemplate(format!("expected 1 to {} bytes, found {found}", chat::MAX_SOURCE)));
        }
        String::from_utf8(bytes).map_err(|e| Error::BadTemplate(format!("expected UTF-8, found {}", e.utf8_error())))
    };
    read().map_err(|error| error.in_file(path))
}

/// Arguments of tool calls that are the JSON of an object in a string become the object: so interfaces hand them out,
/// and templates want them as values.
fn parse_arguments(messages: &mut Value) {
    let calls = messages.as_array_mut().into_iter().flatten().filter_map(|message| message.get_mut("tool_calls"));
    for call in calls.filter_map(Value::as_array_mut).flatten() {
        let function = match call.get("function") {
            Some(Value::Object(_)) => call.get_mut("function"),
            _ => Some(call),
        };
        let Some(arguments) = function.and_then(|function| function.get_mut("arguments")) else { continue };
        if let Some(parsed @ Value::Object(_)) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = parsed;
        }
    }
}
