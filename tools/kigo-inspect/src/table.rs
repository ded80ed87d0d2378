//! The facts as tables.

use std::fmt::Write;

use serde_json::Value;

/// The tables of what kigo_file_info() tells.
pub fn of(info: &Value) -> String {
    let mut facts = vec![row("architecture", text(&info["architecture"])), row("name", text(&info["name"]))];
    let file = &info["file"];
    let parts = match number(&file["n_files"]) {
        1 => String::new(),
        n => format!(" in {n} parts"),
    };
    let (size, version, n_tensors) = (bytes(&file["bytes"]), number(&file["version"]), number(&file["n_tensors"]));
    facts.push(row("file", format!("{size}{parts}, GGUF {version}, {n_tensors} tensors")));
    facts.extend(entries(&info["sizes"]).map(|(name, value)| row(name, shown(value))));
    facts.push(row("types", types(&info["types"])));
    let tokenizer = &info["tokenizer"];
    if tokenizer.is_object() {
        for name in ["bos", "eos", "eot", "eom", "unknown"] {
            if tokenizer[name].is_object() {
                facts.push(row(name, token(&tokenizer[name])));
            }
        }
        let eog: Vec<String> = tokenizer["eog"].as_array().into_iter().flatten().map(token).collect();
        facts.push(row("eog", eog.join(", ")));
    }
    let templates: Vec<String> = info["chat_templates"].as_array().into_iter().flatten().map(text).collect();
    facts.push(row("chat templates", if templates.is_empty() { "none".into() } else { templates.join(", ") }));
    let memory = &info["memory"];
    if memory.is_object() {
        let (device, n_ctx, n_batch) = (text(&memory["device"]), number(&memory["n_ctx"]), number(&memory["n_batch"]));
        facts.push(row("memory", format!("on {device}, with n_ctx {n_ctx} and n_batch {n_batch}")));
        let cache = format!("{} ({} a token)", bytes(&memory["cache"]), bytes(&memory["cache_per_token"]));
        facts.push(row("  weights", bytes(&memory["weights"])));
        facts.push(row("  cache", cache));
        facts.push(row("  workspace", bytes(&memory["workspace"])));
        facts.push(row("  total", bytes(&memory["total"])));
    }
    let mut roles = vec![["role", "tensors", "parameters", "size", "types"].map(str::to_string)];
    for role in info["roles"].as_array().into_iter().flatten() {
        roles.push([
            text(&role["role"]),
            number(&role["count"]).to_string(),
            number(&role["n_params"]).to_string(),
            bytes(&role["bytes"]),
            types(&role["types"]),
        ]);
    }
    format!("{}\n{}", aligned(&facts, &[]), aligned(&roles, &[1, 2, 3]))
}

fn row(name: &str, value: String) -> [String; 2] {
    [name.to_string(), value]
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Text of a file, without what a terminal would act on.
fn text(value: &Value) -> String {
    let escaped = |c: char| if c == '"' || c == '\'' { c.to_string() } else { c.escape_debug().to_string() };
    value.as_str().unwrap_or_default().chars().map(escaped).collect()
}

/// A value of the hyperparameters; runs of equal elements of an array are counted.
fn shown(value: &Value) -> String {
    let Some(items) = value.as_array() else {
        return if value.is_string() { text(value) } else { value.to_string() };
    };
    let runs = items.chunk_by(|a, b| a == b).map(|run| match run.len() {
        1 => shown(&run[0]),
        n => format!("{n} x {}", shown(&run[0])),
    });
    runs.collect::<Vec<_>>().join(", ")
}

fn types(value: &Value) -> String {
    let shown =
        |(name, group): (&str, &Value)| format!("{name} {} ({})", number(&group["count"]), bytes(&group["bytes"]));
    entries(value).map(shown).collect::<Vec<_>>().join(", ")
}

fn token(value: &Value) -> String {
    format!("{} \"{}\"", number(&value["id"]), text(&value["text"]))
}

/// Bytes in the largest unit of which there is one at least.
fn bytes(value: &Value) -> String {
    let n = number(value);
    let units = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match units.into_iter().find(|(_, size)| n >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", n as f64 / size as f64),
        None => format!("{n} B"),
    }
}

/// Rows whose columns stand under each other, `right` those that end there.
fn aligned<const N: usize>(rows: &[[String; N]], right: &[usize]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Writing to a String cannot fail.
            let _ = match right.contains(&column) {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:width$}  "),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
