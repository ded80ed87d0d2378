//! Methods of Python's `str`, `list` and `dict` that minijinja's own lack, or do otherwise.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Widest text that padding makes, in characters.
const MAX_WIDTH: usize = 4096;

/// Methods whose arguments may be named, with the names in order.
const NAMED: [(&str, &[&str]); 4] = [
    ("split", &["sep", "maxsplit"]),
    ("rsplit", &["sep", "maxsplit"]),
    ("splitlines", &["keepends"]),
    ("expandtabs", &["tabsize"]),
];

/// Methods that look at a part of the text, when numbers after their first argument say which.
const PARTIAL: [&str; 7] = ["count", "endswith", "find", "index", "rfind", "rindex", "startswith"];

/// The result of method `name` of `value`.
pub fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let positional = positional(name, args)?;
    let args = positional.as_slice();
    let own = match (value.as_str(), value.kind()) {
        (Some(text), _) if PARTIAL.contains(&name) && args.len() > 1 => return in_part(state, text, name, args),
        (Some(text), _) => of_string(text, name, args)?,
        (None, ValueKind::Seq) => of_list(value, name, args)?,
        (None, ValueKind::Map) if name == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// The arguments in their order, for a method whose arguments may be named.
fn positional(name: &str, args: &[Value]) -> Result<Vec<Value>, Error> {
    let Some((_, names)) = NAMED.iter().find(|(method, _)| *method == name) else { return Ok(args.to_vec()) };
    let Some((last, before)) = args.split_last() else { return Ok(Vec::new()) };
    let Ok(named) = Kwargs::try_from(last.clone()) else { return Ok(args.to_vec()) };
    let mut all = before.to_vec();
    for name in names.iter().skip(before.len()) {
        all.push(named.get::<Option<Value>>(name)?.unwrap_or_default());
    }
    named.assert_all_used()?;
    while all.last().is_some_and(Value::is_undefined) {
        all.pop();
    }
    Ok(all.into_iter().map(|value| if value.is_undefined() { Value::from(()) } else { value }).collect())
}

fn refused(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

fn of_string(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let no_args = || from_args::<()>(args);
    let result = match name {
        "center" | "ljust" | "rjust" => {
            let (width, fill) = from_args(args)?;
            let fill: Option<char> = fill;
            let pad = padding(text, width)?;
            let left = match name {
                "center" => center_left(pad, width as usize),
                "rjust" => pad,
                _ => 0,
            };
            Value::from(padded(text, left, pad - left, fill.unwrap_or(' ')))
        }
        "zfill" => {
            let (width,) = from_args(args)?;
            let pad = padding(text, width)?;
            let sign = text.strip_prefix(['-', '+']).map_or("", |rest| &text[..text.len() - rest.len()]);
            Value::from(format!("{sign}{}{}", "0".repeat(pad), &text[sign.len()..]))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(refused(format!("{name}: empty separator")));
            }
            let found = if name == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::from_object(Tuple::from(parts.map(Value::from)))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "swapcase" => {
            no_args()?;
            let swap = |c: char| if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect() };
            Value::from(text.chars().map(swap).collect::<Vec<String>>().concat())
        }
        "casefold" => {
            no_args()?;
            Value::from(text.to_lowercase().replace('ß', "ss").replace('ς', "σ"))
        }
        "title" => {
            no_args()?;
            Value::from(title(text))
        }
        "istitle" => {
            no_args()?;
            Value::from(text.chars().any(char::is_alphabetic) && title(text) == text)
        }
        "isdecimal" => {
            no_args()?;
            Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        }
        "isidentifier" => {
            no_args()?;
            let starts = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
            Value::from(starts && text.chars().all(|c| c.is_alphanumeric() || c == '_'))
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let found = if name == "index" { text.find(part) } else { text.rfind(part) };
            let at = found.ok_or_else(|| refused(format!("{name}: substring not found")))?;
            Value::from(text[..at].chars().count())
        }
        "rsplit" => {
            let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
            Value::from(rsplit(text, separator, most.and_then(|most| usize::try_from(most).ok()))?)
        }
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            Value::from(expand_tabs(text, size.unwrap_or(8))?)
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn of_list(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match name {
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            for (at, item) in value.try_iter()?.checked().enumerate() {
                if item? == *wanted {
                    return Ok(Some(Value::from(at)));
                }
            }
            Err(refused("index: the list has no such value"))
        }
        _ => Ok(None),
    }
}

/// A method of the part of `text` that the second and third argument bound, in characters; negative ones count from
/// the end.
fn in_part(state: &mut State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let len = text.chars().count() as i64;
    let place = |at: i64| if at < 0 { (len + at).max(0) } else { at.min(len) };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(len)));
    let part: String = text.chars().skip(start as usize).take((end - start).max(0) as usize).collect();
    let found = call(state, &Value::from(part), name, &[what])?;
    Ok(match found.as_i64() {
        Some(at) if name.contains("find") && at < 0 => found,
        Some(at) if name.contains("find") || name.contains("index") => Value::from(at + start),
        _ => found,
    })
}

/// How many characters `text` lacks to be `width` wide.
pub fn padding(text: &str, width: i64) -> Result<usize, Error> {
    let width = usize::try_from(width).unwrap_or(0);
    if width > MAX_WIDTH {
        return Err(refused(format!("expected a width of at most {MAX_WIDTH}, found {width}")));
    }
    Ok(width.saturating_sub(text.chars().count()))
}

/// How much of the padding Python puts to the left of a text that it centers.
pub fn center_left(pad: usize, width: usize) -> usize {
    pad / 2 + (pad & width & 1)
}

/// `text` between so many of `fill`.
pub fn padded(text: &str, left: usize, right: usize, fill: char) -> String {
    let run = |n| std::iter::repeat_n(fill, n);
    run(left).chain(text.chars()).chain(run(right)).collect()
}

/// `text` with each letter that follows no letter in upper case and the others in lower case.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

fn rsplit(text: &str, separator: Option<&str>, most: Option<usize>) -> Result<Vec<Value>, Error> {
    let most = most.unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    let mut rest = text;
    if let Some(separator) = separator {
        if separator.is_empty() {
            return Err(refused("rsplit: empty separator"));
        }
        while let Some((before, after)) = rest.rsplit_once(separator).filter(|_| parts.len() < most) {
            parts.push(Value::from(after));
            rest = before;
        }
        parts.push(Value::from(rest));
    } else {
        rest = rest.trim_end();
        while let Some((before, after)) = rest.rsplit_once(char::is_whitespace).filter(|_| parts.len() < most) {
            parts.push(Value::from(after));
            rest = before.trim_end();
        }
        if !rest.is_empty() {
            parts.push(Value::from(rest));
        }
    }
    parts.reverse();
    Ok(parts)
}

fn expand_tabs(text: &str, size: usize) -> Result<String, Error> {
    const MAX_TAB: usize = 16;
    if size > MAX_TAB {
        return Err(refused(format!("expandtabs: expected at most {MAX_TAB}, found {size}")));
    }
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' => {
                let n = if size == 0 { 0 } else { size - column % size };
                out.extend(std::iter::repeat_n(' ', n));
                column += n;
            }
            _ => {
                out.push(c);
                column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
            }
        }
    }
    Ok(out)
}
