//! Bounds on the values that a template makes; see [`super::rewrite`] for where they apply.

use minijinja::value::{Kwargs, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, functions, tests};

use super::methods;

/// The filter that containers go through when they are made.
pub const BOUNDED: &str = "kigo_bounded";
/// The filter that attributes of namespaces go through.
pub const MEMBER: &str = "kigo_member";
/// The filter that factors go through.
pub const FACTOR: &str = "kigo_factor";
/// The variable with the number of values that a value may hold; not an identifier, so templates cannot name it.
pub const MAX_NODES: &str = " nodes";
/// Deepest nesting of a value, with room for that of the inputs.
const MAX_DEPTH: usize = super::MAX_INPUT_DEPTH + 32;
/// The most digits that a number in the format of `str.format` may have.
const MAX_WIDTH_DIGITS: usize = 3;

/// Adds the filters, and puts bounds on what minijinja and its Python methods leave unbounded.
pub fn install(env: &mut Environment) {
    env.add_filter(BOUNDED, |state: &State, value: Value| walk(state, value, false));
    env.add_filter(MEMBER, |state: &State, value: Value| walk(state, value, true));
    env.add_filter(FACTOR, factor);
    env.add_function("dict", |state: &State, value: Option<Value>, fields: Kwargs| {
        walk(state, functions::dict(value, fields)?, false)
    });
    env.add_function("namespace", |state: &State, fields: Option<ValueOrKwargs>| {
        walk(state, functions::namespace(fields)?, false)
    });
    // minijinja counts none among the iterables.
    env.add_test("iterable", |value: &Value| !value.is_none() && tests::is_iterable(value));
    // Jinja has none of these: they show the state, or make containers.
    env.remove_global("debug");
    for filter in ["chain", "zip"] {
        env.remove_filter(filter);
    }
    env.set_unknown_method_callback(method);
}

fn refused(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

fn walk(state: &State, value: Value, plain: bool) -> Result<Value, Error> {
    if value.as_object().is_none() {
        return Ok(value);
    }
    let limit = state.lookup(MAX_NODES).and_then(|v| v.as_usize()).unwrap_or(0);
    let mut walk = Walk { plain, left: limit };
    let settled = walk.settle(&value, 0)?;
    state.consume_fuel((limit - walk.left) as u64 / 8)?;
    Ok(settled.unwrap_or(value))
}

/// A pass over a value and all that it holds, shared parts as often as they are held.
struct Walk {
    /// Whether namespaces become dictionaries and macros are refused: a namespace that holds itself, or a chain of
    /// macros, would have no end.
    plain: bool,
    /// Values that may still be met.
    left: usize,
}

impl Walk {
    /// What to use instead of `value`: lazy sequences, which refer to others without bound, become lists.
    fn settle(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.left = self.left.checked_sub(1).ok_or_else(|| refused("a value holds too many others"))?;
        if depth > MAX_DEPTH {
            return Err(refused(format!("a value is nested deeper than {MAX_DEPTH}")));
        }
        let Some(object) = value.as_object() else { return Ok(None) };
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let is_list = object.downcast_ref::<Vec<Value>>().is_some();
                let mut changed = !is_list && !value.is_tuple();
                let mut items = Vec::new();
                for item in value.try_iter()?.checked() {
                    let item = item?;
                    let settled = self.settle(&item, depth + 1)?;
                    changed |= settled.is_some();
                    items.push(settled.unwrap_or(item));
                }
                Ok(match (changed, value.is_tuple()) {
                    (false, _) => None,
                    (true, true) => Some(Value::from_object(Tuple::from(items))),
                    (true, false) => Some(Value::from(items)),
                })
            }
            ValueKind::Map => {
                // Namespaces, `loop` and the like are maps to look at, but not dictionaries.
                let is_dict = object.type_name().starts_with("indexmap::");
                let mut changed = self.plain && !is_dict;
                let mut pairs = Vec::new();
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    let is_hashable = key.as_object().is_none() || key.is_tuple();
                    if !is_hashable || self.settle(&key, depth + 1)?.is_some() {
                        return Err(refused(format!("a {} cannot be a key", key.kind())));
                    }
                    let item = value.get_item(&key)?;
                    let settled = self.settle(&item, depth + 1)?;
                    changed |= is_dict && settled.is_some();
                    pairs.push((key, settled.unwrap_or(item)));
                }
                Ok(changed.then(|| Value::from_pairs(pairs)))
            }
            _ if self.plain => Err(refused(format!("a namespace cannot hold a {}", value.kind()))),
            _ => Ok(None),
        }
    }
}

/// `value`, if it may be multiplied: repeated lists can become too large to look at.
fn factor(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => Err(refused("a list cannot be multiplied here")),
        _ => Ok(value),
    }
}

/// A method of Python's `str`, `list` or `dict`, if its result can be paid for.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        // Work is proportional to the text, and to the length of what is made.
        let bytes = match (name, args) {
            ("replace", [from, to, ..]) => {
                let (from, to) = (from.as_str().unwrap_or_default(), to.as_str().unwrap_or_default());
                let found = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() };
                text.len().saturating_add(found.saturating_mul(to.len()))
            }
            ("join", [items, ..]) => {
                let mut sum = 0usize;
                for item in items.try_iter()?.checked() {
                    sum = sum.saturating_add(text.len()).saturating_add(item?.as_str().map_or(0, str::len));
                }
                sum
            }
            ("format", _) if has_long_number(text) => {
                return Err(refused(format!("format: expected numbers of at most {MAX_WIDTH_DIGITS} digits")));
            }
            _ => text.len(),
        };
        state.consume_fuel(bytes as u64 / 64)?;
    }
    methods::call(state, value, name, args)
}

fn has_long_number(format: &str) -> bool {
    format.as_bytes().windows(MAX_WIDTH_DIGITS + 1).any(|run| run.iter().all(u8::is_ascii_digit))
}
