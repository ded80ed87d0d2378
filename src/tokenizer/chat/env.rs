//! The environment that templates run in: that of Hugging Face's `apply_chat_template`.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, State, UndefinedBehavior, Value};
use serde_json::Value as Json;

use super::guard::{Guard, Use};
use super::{MAX_INPUT_DEPTH, MAX_OUTPUT, RenderOptions, bounds, clock, filters, json, rewrite};
use crate::{Error, Result};

/// Name of the template in its environment.
const NAME: &str = "chat";
/// Work that a rendering may do, in minijinja's fuel (about one instruction or 64 bytes each): so much for itself, for
/// each value of the inputs and for each byte of their texts.
const FUEL: u64 = 500_000;
const FUEL_PER_NODE: u64 = 500;
const FUEL_PER_BYTE: u64 = 1;
/// Values that a value made by a template may hold, besides four times those of the inputs.
const MIN_NODES: usize = 2_000;
/// Nesting of a running template: a block costs 1, a macro 4.
const MAX_RECURSION: usize = 160;
/// Longest message of an error in characters.
const MAX_MESSAGE: usize = 500;
/// The variable with the time of the rendering; not an identifier, so templates cannot name it.
const NOW: &str = " now";

/// The environment with `source` in it as its only template, and the literals of that.
pub fn compile(source: &str) -> Result<(Environment<'static>, Vec<String>)> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let syntax = syntax.map_err(|e| Error::Internal(e.to_string()))?;
    // As Jinja does; minijinja's trimming knows no other ends of lines.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let rewritten = rewrite::rewrite(&source, syntax.clone()).map_err(Error::BadTemplate)?;
    env.set_syntax(syntax);
    env.set_recursion_limit(MAX_RECURSION);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    bounds::install(&mut env);
    filters::install(&mut env);
    env.add_filter("tojson", json::tojson);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env.add_template_owned(NAME, rewritten.source).map_err(bad_template)?;
    Ok((env, rewritten.literals))
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The time in UTC, as `format` of `strftime` says.
fn strftime_now(state: &State, format: &str) -> String {
    let micros = state.lookup(NOW).and_then(|v| v.as_i64()).unwrap_or(0);
    let offset = Duration::from_micros(micros.unsigned_abs());
    let now = if micros < 0 { UNIX_EPOCH.checked_sub(offset) } else { UNIX_EPOCH.checked_add(offset) };
    clock::strftime(now.unwrap_or(UNIX_EPOCH), format)
}

/// Runs the template of `env`.
pub fn render(env: &Environment, messages: &Json, options: &RenderOptions, guard: Option<&Guard>) -> Result<String> {
    let now = options.now.unwrap_or_else(SystemTime::now);
    let micros = match now.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |m| -m),
    };
    let inputs = options.variables.into_iter().flat_map(|map| map.values()).chain(options.tools).chain([messages]);
    let (mut nodes, mut bytes) = (0, 0);
    inputs.for_each(|input| measure(input, &mut nodes, &mut bytes));
    let max_nodes = 4 * nodes + MIN_NODES;
    let mut context = vec![
        (Value::from(NOW), Value::from(micros)),
        (Value::from(bounds::MAX_NODES), Value::from(max_nodes)),
        (Value::from("messages"), convert_messages(messages, guard)),
        (Value::from("tools"), options.tools.map_or(Value::from(()), |tools| convert(tools, guard, Use::Text))),
        (Value::from("documents"), Value::from(())),
        (Value::from("add_generation_prompt"), Value::from(options.add_generation_prompt)),
    ];
    for (name, text) in [("bos_token", options.bos_token), ("eos_token", options.eos_token)] {
        if let Some(text) = text {
            context.push((Value::from(name), Value::from(text)));
        }
    }
    for (name, value) in options.variables.into_iter().flatten() {
        context.push((Value::from(name.as_str()), convert(value, guard, Use::Text)));
    }
    // A copy shares the compiled template.
    let mut env = env.clone();
    env.set_fuel(Some(FUEL + FUEL_PER_NODE * nodes as u64 + FUEL_PER_BYTE * bytes as u64));
    let template = env.get_template(NAME).map_err(bad_template)?;
    let mut output = Bounded { bytes: Vec::new(), full: false };
    let outcome = template.render_captured_to(Value::from_pairs(context), &mut output).map(drop);
    if output.full {
        return Err(Error::BadTemplate(format!("expected at most {MAX_OUTPUT} bytes of text, found more")));
    }
    outcome.map_err(bad_template)?;
    String::from_utf8(output.bytes).map_err(|e| Error::Internal(e.to_string()))
}

/// Checks the shape of the inputs, which everything after it relies on.
pub fn check_inputs(messages: &Json, options: &RenderOptions) -> Result<()> {
    let shape = "an array of objects";
    let Json::Array(items) = messages else {
        return Err(Error::invalid_argument("messages", shape, kind(messages)));
    };
    if let Some((i, item)) = items.iter().enumerate().find(|(_, item)| !item.is_object()) {
        return Err(Error::invalid_argument("messages", shape, format!("{} at index {i}", kind(item))));
    }
    let variables = options.variables.into_iter().flatten().map(|(name, value)| (name.as_str(), value));
    for (name, value) in
        options.tools.map(|tools| ("tools", tools)).into_iter().chain(variables).chain([("messages", messages)])
    {
        if !is_shallow(value, MAX_INPUT_DEPTH) {
            return Err(Error::invalid_argument(name, format!("nesting of at most {MAX_INPUT_DEPTH}"), "a deeper one"));
        }
    }
    Ok(())
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

/// Whether `value` nests at most `depth` levels of arrays and objects.
fn is_shallow(value: &Json, depth: usize) -> bool {
    match value {
        Json::Array(items) => depth > 0 && items.iter().all(|item| is_shallow(item, depth - 1)),
        Json::Object(map) => depth > 0 && map.values().all(|item| is_shallow(item, depth - 1)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => true,
    }
}

/// Adds up the values in `value`, and the bytes of its texts.
fn measure(value: &Json, nodes: &mut usize, bytes: &mut usize) {
    *nodes += 1;
    match value {
        Json::Array(items) => items.iter().for_each(|item| measure(item, nodes, bytes)),
        Json::Object(map) => map.iter().for_each(|(key, item)| {
            *bytes += key.len();
            measure(item, nodes, bytes);
        }),
        Json::String(text) => *bytes += text.len(),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

/// The messages as the template sees them: without fields that are null, which templates would write as text. Reasoning
/// is known by three names; each message that has one has the two that templates read.
fn convert_messages(messages: &Json, guard: Option<&Guard>) -> Value {
    let items = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .map(|message| {
            let Some(fields) = message.as_object() else { return convert(message, guard, Use::Text) };
            let reasoning = ["reasoning_content", "thinking", "reasoning"]
                .iter()
                .find_map(|name| fields.get(*name).filter(|value| !value.is_null()))
                .map(|value| convert(value, guard, Use::Text));
            let mut pairs = Vec::with_capacity(fields.len() + 2);
            pairs.extend(reasoning.clone().map(|value| (Value::from("thinking"), value)));
            pairs.extend(convert_fields(fields.iter().filter(|(_, value)| !value.is_null()), guard));
            pairs.extend(reasoning.map(|value| (Value::from("reasoning_content"), value)));
            Value::from_pairs(pairs)
        })
        .collect()
}

fn convert_fields<'a>(
    fields: impl Iterator<Item = (&'a String, &'a Json)>,
    guard: Option<&Guard>,
) -> impl Iterator<Item = (Value, Value)> {
    fields.map(move |(key, value)| {
        let as_what = if matches!(key.as_str(), "role" | "type") { Use::Protocol } else { Use::Text };
        (string(key, guard, Use::Key), convert(value, guard, as_what))
    })
}

fn convert(value: &Json, guard: Option<&Guard>, as_what: Use) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(n), _, _) => Value::from(n),
            (None, Some(n), _) => Value::from(n),
            (None, None, n) => Value::from(n.unwrap_or(f64::NAN)),
        },
        Json::String(text) => string(text, guard, as_what),
        Json::Array(items) => items.iter().map(|item| convert(item, guard, as_what)).collect(),
        Json::Object(fields) => Value::from_pairs(convert_fields(fields.iter(), guard)),
    }
}

fn string(text: &str, guard: Option<&Guard>, as_what: Use) -> Value {
    match guard {
        Some(guard) => Value::from(guard.mark(text, as_what).as_ref()),
        None => Value::from(text),
    }
}

/// A writer that refuses more than [`MAX_OUTPUT`] bytes.
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_OUTPUT - self.bytes.len() || self.bytes.try_reserve(bytes.len()).is_err() {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn bad_template(error: minijinja::Error) -> Error {
    Error::BadTemplate(describe(&error))
}

/// One line of at most [`MAX_MESSAGE`] characters about `error`, without anything that a terminal would act on.
pub fn describe(error: &minijinja::Error) -> String {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "expected less work for inputs of this size".to_string(),
        (_, Some(detail)) => detail.to_string(),
        (kind, None) => kind.to_string(),
    };
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let mut message = String::new();
    for (i, c) in line.chars().chain(what.chars()).enumerate() {
        match c {
            _ if i == MAX_MESSAGE => {
                message.push_str("...");
                break;
            }
            '"' | '\'' => message.push(c),
            _ => message.extend(c.escape_debug()),
        }
    }
    message
}
