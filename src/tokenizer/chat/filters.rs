//! Filters and tests of Jinja that minijinja lacks, or does otherwise.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

use super::methods;

/// The filter that stands for `%` behind a string.
pub const PERCENT: &str = "kigo_percent";

/// Adds them to `env`.
pub fn install(env: &mut Environment) {
    env.add_filter(PERCENT, percent);
    env.add_filter("center", center);
    env.add_filter("d", default);
    env.add_filter("default", default);
    env.add_filter("dictsort", dictsort);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_filter("indent", indent);
    env.add_filter("int", int);
    env.add_filter("pprint", pprint);
    env.add_filter("striptags", striptags);
    env.add_filter("truncate", truncate);
    env.add_filter("wordcount", wordcount);
    env.add_filter("wordwrap", wordwrap);
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
}

/// Arguments that are given by position or by name.
struct Arguments {
    positional: Rest<Value>,
    named: Kwargs,
}

impl Arguments {
    /// The argument at `position`, or of that name; a missing one and `none` are none.
    fn value(&self, position: usize, name: &str) -> Result<Option<Value>, Error> {
        let value = match self.positional.get(position) {
            Some(value) => Some(value.clone()),
            None => self.named.get::<Option<Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    }

    fn get<T: TryFrom<Value, Error = Error>>(&self, position: usize, name: &str) -> Result<Option<T>, Error> {
        self.value(position, name)?.map(T::try_from).transpose()
    }

    fn text(&self, position: usize, name: &str) -> Result<Option<String>, Error> {
        Ok(self.value(position, name)?.map(|value| value.to_string()))
    }

    /// Refuses arguments that nobody asked for.
    fn end(&self, most: usize) -> Result<(), Error> {
        if self.positional.len() > most {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        self.named.assert_all_used()
    }
}

/// Pays for work on so many bytes, which the interpreter does not see.
fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64)
}

fn refused(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

/// `text % value` of Python: a tuple holds several values, a mapping named ones.
fn percent(state: &mut State, text: Value, value: Value) -> Result<Value, Error> {
    let mut args = vec![text];
    match value.kind() {
        ValueKind::Map => {
            let mut named = Vec::new();
            for key in value.try_iter()?.checked() {
                let key = key?;
                named.push((key.to_string(), value.get_item(&key)?));
            }
            args.push(named.into_iter().collect::<Kwargs>().into());
        }
        _ if value.is_tuple() => {
            for item in value.try_iter()?.checked() {
                args.push(item?);
            }
        }
        _ => args.push(value),
    }
    // The filter bounds what it makes.
    state.apply_filter("format", &args)
}

fn center(state: &State, text: String, width: Option<i64>) -> Result<String, Error> {
    charge(state, text.len())?;
    let width = width.unwrap_or(80);
    let pad = methods::padding(&text, width)?;
    let left = methods::center_left(pad, usize::try_from(width).unwrap_or(0));
    Ok(methods::padded(&text, left, pad - left, ' '))
}

/// `default(default_value='', boolean=False)`
fn default(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let other = match positional.first() {
        Some(other) => Some(other.clone()),
        None => named.get::<Option<Value>>("default_value")?,
    };
    let arguments = Arguments { positional, named };
    let boolean = arguments.value(1, "boolean")?.is_some_and(|boolean| boolean.is_true());
    arguments.end(2)?;
    let is_missing = value.is_undefined() || (boolean && !value.is_true());
    Ok(if is_missing { other.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

/// `dictsort(case_sensitive=False, by='key', reverse=False)`
fn dictsort(value: &Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut all: Vec<(String, Value)> = Vec::new();
    for name in named.args() {
        all.push((name.to_string(), named.get(name)?));
    }
    all.extend(["case_sensitive", "by", "reverse"].map(str::to_string).into_iter().zip(args.0));
    filters::dictsort(value, all.into_iter().collect())
}

fn escape(state: &State, text: String) -> Result<String, Error> {
    charge(state, text.len())?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    Ok(out)
}

/// `indent(width=4, first=False, blank=False)`; a width may be the text to put before lines.
fn indent(state: &State, text: String, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let arguments = Arguments { positional, named };
    let width = arguments.value(0, "width")?.unwrap_or_else(|| Value::from(4));
    let first = arguments.get(1, "first")?.unwrap_or(false);
    let blank = arguments.get(2, "blank")?.unwrap_or(false);
    arguments.end(3)?;
    let indention = match width.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(methods::padding("", width.as_i64().unwrap_or(i64::MAX))?),
    };
    let bytes = text.matches('\n').count().saturating_mul(indention.len()).saturating_add(text.len());
    charge(state, bytes)?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indention);
        }
        out.push_str(line.strip_suffix('\r').unwrap_or(line));
    }
    Ok(out)
}

/// `int(default=0, base=10)`
fn int(state: &State, value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments { positional, named };
    let default = arguments.value(0, "default")?.unwrap_or_else(|| Value::from(0));
    let base = arguments.get(1, "base")?;
    arguments.end(2)?;
    charge(state, value.as_str().map_or(0, str::len))?;
    let trimmed = value.as_str().map(|text| Value::from(text.trim()));
    filters::int(
        state,
        trimmed.as_ref().unwrap_or(value),
        Some(default),
        base,
        std::iter::empty::<(String, Value)>().collect(),
    )
}

/// `value` as Python's `repr` shows it: as an element of a list, on one line however long.
fn pprint(state: &State, value: Value) -> Result<String, Error> {
    let list = Value::from(vec![value]).to_string();
    charge(state, list.len())?;
    Ok(list.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&list).to_string())
}

/// The text without comments and tags of XML, its white space made single and its entities resolved.
fn striptags(state: &State, text: String) -> Result<String, Error> {
    charge(state, text.len())?;
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some((before, tag)) = rest.split_once('<') {
        out.push_str(before);
        let (end, skipped) = if tag.starts_with("!--") { ("-->", 3) } else { (">", 0) };
        match tag[skipped..].split_once(end) {
            Some((_, after)) => rest = after,
            None => {
                out.push('<');
                rest = tag;
            }
        }
    }
    out.push_str(rest);
    let words: Vec<&str> = out.split_whitespace().collect();
    let mut out = words.join(" ");
    for (entity, c) in [("&lt;", "<"), ("&gt;", ">"), ("&#34;", "\""), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
    {
        out = out.replace(entity, c);
    }
    Ok(out)
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`
fn truncate(state: &State, text: String, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    charge(state, text.len())?;
    let arguments = Arguments { positional, named };
    let length: usize = arguments.get(0, "length")?.unwrap_or(255);
    let killwords = arguments.get(1, "killwords")?.unwrap_or(false);
    let end = arguments.text(2, "end")?.unwrap_or_else(|| "...".to_string());
    let leeway = arguments.get(3, "leeway")?.unwrap_or(5);
    arguments.end(4)?;
    let kept = length.checked_sub(end.chars().count());
    let kept = kept.ok_or_else(|| refused("truncate: expected a length of at least that of the end"))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let head: String = text.chars().take(kept).collect();
    let head = if killwords { head.as_str() } else { head.rsplit_once(' ').map_or(head.as_str(), |(words, _)| words) };
    Ok(format!("{head}{end}"))
}

fn wordcount(state: &State, text: String) -> Result<usize, Error> {
    charge(state, text.len())?;
    Ok(text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count())
}

/// `wordwrap(width=79, break_long_words=True, wrapstring='\n', break_on_hyphens=True)`
fn wordwrap(state: &State, text: String, positional: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    // A line may be as short as one character, and is followed by the wrapstring.
    charge(state, text.len().saturating_mul(4))?;
    let arguments = Arguments { positional, named };
    let width = arguments.get(0, "width")?.unwrap_or(79);
    let break_long_words = arguments.get(1, "break_long_words")?.unwrap_or(true);
    let wrapstring = arguments.text(2, "wrapstring")?.unwrap_or_else(|| "\n".to_string());
    let break_on_hyphens = arguments.get(3, "break_on_hyphens")?.unwrap_or(true);
    arguments.end(4)?;
    if width == 0 || wrapstring.len() > 16 {
        return Err(refused("wordwrap: expected a width of at least 1 and a wrapstring of at most 16 bytes"));
    }
    let mut lines = Vec::new();
    for line in text.lines() {
        wrap_line(line, width, break_long_words, break_on_hyphens, &mut lines);
    }
    Ok(lines.join(&wrapstring))
}

/// Adds the lines of at most `width` characters that Python's `textwrap` makes of `line`.
fn wrap_line(line: &str, width: usize, break_long_words: bool, break_on_hyphens: bool, lines: &mut Vec<String>) {
    let (first, mut current, mut len) = (lines.len(), String::new(), 0);
    let mut end_line = |current: &mut String, len: &mut usize| {
        let kept = current.trim_end();
        if !kept.is_empty() {
            lines.push(kept.to_string());
        }
        current.clear();
        *len = 0;
    };
    for chunk in chunks(line, break_on_hyphens) {
        let mut chunk = chunk;
        let mut n = chunk.chars().count();
        if len + n > width {
            if chunk.trim().is_empty() {
                end_line(&mut current, &mut len);
                continue;
            }
            if n <= width || !break_long_words {
                end_line(&mut current, &mut len);
            }
            while n > width && break_long_words {
                let room = (width - len).max(1);
                let at = chunk.char_indices().nth(room).map_or(chunk.len(), |(at, _)| at);
                current.push_str(&chunk[..at]);
                end_line(&mut current, &mut len);
                (chunk, n) = (&chunk[at..], n - room);
            }
        }
        if !(current.is_empty() && chunk.trim().is_empty()) {
            current.push_str(chunk);
            len += n;
        }
    }
    end_line(&mut current, &mut len);
    if lines.len() == first {
        lines.push(String::new());
    }
}

/// The runs of white space and of other characters, the latter cut behind hyphens between letters.
fn chunks(line: &str, break_on_hyphens: bool) -> Vec<&str> {
    let mut chunks = Vec::new();
    let (mut start, mut before) = (0, [None; 2]);
    for (at, c) in line.char_indices() {
        let is_cut = match before {
            [_, Some(last)] if char::is_whitespace(last) != c.is_whitespace() => true,
            [Some(a), Some('-')] => break_on_hyphens && char::is_alphabetic(a) && c.is_alphabetic(),
            _ => false,
        };
        if is_cut {
            chunks.push(&line[start..at]);
            start = at;
        }
        before = [before[1], Some(c)];
    }
    chunks.push(&line[start..]);
    chunks
}
