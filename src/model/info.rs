//! What a file says about its model, as JSON. Nothing here depends on the architecture.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use crate::gguf::{Array, Gguf, Metadata, Value};

/// Most hyperparameters and most roles that are listed: files have some dozens.
const MAX_ENTRIES: usize = 256;
/// Longest text, in characters, and longest array that is shown.
const MAX_LEN: usize = 256;

/// Sizes by kigo's names, with the keys of their values after that of the architecture.
const SIZES: [(&str, &str); 11] = [
    ("n_layer", "block_count"),
    ("n_embd", "embedding_length"),
    ("n_head", "attention.head_count"),
    ("n_head_kv", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("n_ff", "feed_forward_length"),
    ("n_ff_expert", "expert_feed_forward_length"),
    ("n_expert", "expert_count"),
    ("n_expert_used", "expert_used_count"),
    ("n_swa", "attention.sliding_window"),
    ("n_ctx_train", "context_length"),
];

/// The facts about the model in `gguf`.
pub fn facts(gguf: &Gguf) -> Map<String, Json> {
    let metadata = gguf.metadata();
    let text = |key: &str| metadata.str(key).ok().flatten().map(shortened);
    let architecture = text("general.architecture").unwrap_or_default();
    let hyperparameters = hyperparameters(metadata, &architecture);
    let mut sizes = Map::new();
    for (name, key) in SIZES {
        if let Some(value) = hyperparameters.get(key) {
            sizes.insert(name.into(), value.clone());
        }
    }
    let n_vocab = metadata.strings("tokenizer.ggml.tokens").ok().flatten().map_or(0, |tokens| tokens.len());
    sizes.insert("n_vocab".into(), n_vocab.into());
    let n_params = gguf.tensors().iter().fold(0u64, |sum, tensor| sum.saturating_add(tensor.n_elements));
    sizes.insert("n_params".into(), n_params.into());
    let (roles, types) = tensors(gguf);
    let mut facts = Map::new();
    facts.insert("architecture".into(), architecture.into());
    facts.insert("name".into(), text("general.name").unwrap_or_default().into());
    facts.insert(
        "file".into(),
        json!({
            "bytes": gguf.file_bytes(),
            "n_files": gguf.n_shards(),
            "version": gguf.version(),
            "n_tensors": gguf.tensors().len(),
        }),
    );
    facts.insert("sizes".into(), sizes.into());
    facts.insert("hyperparameters".into(), hyperparameters.into());
    facts.insert("types".into(), types);
    facts.insert("roles".into(), roles);
    facts
}

/// What the file says under the name of the architecture.
fn hyperparameters(metadata: &Metadata, architecture: &str) -> Map<String, Json> {
    let own = metadata.iter().filter_map(|(key, value)| {
        let key = key.strip_prefix(architecture)?.strip_prefix('.')?;
        Some((key.to_string(), shown(value)))
    });
    own.take(MAX_ENTRIES).collect()
}

fn shown(value: &Value) -> Json {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F32(v) => float(*v),
        Value::F64(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => shortened(&String::from_utf8_lossy(&v[..v.len().min(4 * MAX_LEN)])).into(),
        Value::Array(v) if v.len() > MAX_LEN => format!("{} {}", v.len(), v.type_name()).into(),
        Value::Array(Array::U8(v)) => json!(v),
        Value::Array(Array::I8(v)) => json!(v),
        Value::Array(Array::U16(v)) => json!(v),
        Value::Array(Array::I16(v)) => json!(v),
        Value::Array(Array::U32(v)) => json!(v),
        Value::Array(Array::I32(v)) => json!(v),
        Value::Array(Array::U64(v)) => json!(v),
        Value::Array(Array::I64(v)) => json!(v),
        Value::Array(Array::F32(v)) => v.iter().map(|v| float(*v)).collect(),
        Value::Array(Array::F64(v)) => json!(v),
        Value::Array(Array::Bool(v)) => json!(v),
        Value::Array(Array::String(v)) => format!("{} STRING", v.len()).into(),
    }
}

/// `value` with the digits that tell it from other `f32`, not those of the nearest `f64`.
fn float(value: f32) -> Json {
    value.to_string().parse::<f64>().map_or(Json::Null, Json::from)
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_LEN).collect()
}

/// Tensors of one role or type.
#[derive(Default)]
struct Group {
    count: u64,
    n_params: u64,
    bytes: u64,
    /// Count and bytes by type, in the order of the file.
    types: Vec<(&'static str, u64, u64)>,
}

impl Group {
    fn add(&mut self, quant_type: &'static str, n_elements: u64, n_bytes: u64) {
        self.count += 1;
        self.n_params = self.n_params.saturating_add(n_elements);
        self.bytes = self.bytes.saturating_add(n_bytes);
        match self.types.iter_mut().find(|(name, ..)| *name == quant_type) {
            Some((_, count, bytes)) => (*count, *bytes) = (*count + 1, bytes.saturating_add(n_bytes)),
            None => self.types.push((quant_type, 1, n_bytes)),
        }
    }

    fn types(&self) -> Json {
        let types = self.types.iter().map(|(name, count, bytes)| {
            let group = json!({ "count": count, "bytes": bytes });
            (name.to_string(), group)
        });
        Json::Object(types.collect())
    }
}

/// The tensors by role, an array, and by type.
fn tensors(gguf: &Gguf) -> (Json, Json) {
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut roles: Vec<(String, Group)> = Vec::new();
    let mut all = Group::default();
    for tensor in gguf.tensors() {
        let mut role = role_of(&tensor.name);
        if index.len() >= MAX_ENTRIES && !index.contains_key(role) {
            role = "others";
        }
        let at = *index.entry(role.to_string()).or_insert(roles.len());
        if at == roles.len() {
            roles.push((role.to_string(), Group::default()));
        }
        let name = tensor.quant_type.name();
        roles[at].1.add(name, tensor.n_elements, tensor.n_bytes);
        all.add(name, tensor.n_elements, tensor.n_bytes);
    }
    let roles = roles.iter().map(|(role, group)| {
        let (count, n_params, bytes) = (group.count, group.n_params, group.bytes);
        json!({ "role": role, "count": count, "n_params": n_params, "bytes": bytes, "types": group.types() })
    });
    (roles.collect(), all.types())
}

/// The name of a tensor without the number of its layer: `attn_q.weight` of `blk.0.attn_q.weight`.
fn role_of(name: &str) -> &str {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match layer {
        Some((number, role)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => role,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_the_name_without_the_layer() {
        for (name, role) in [
            ("blk.0.attn_q.weight", "attn_q.weight"),
            ("blk.12.ffn_down.bias", "ffn_down.bias"),
            ("token_embd.weight", "token_embd.weight"),
            ("blk.x.attn_q", "blk.x.attn_q"),
            ("blk..y", "blk..y"),
            ("blk.1", "blk.1"),
        ] {
            assert_eq!(role_of(name), role);
        }
    }

    #[test]
    fn floats_keep_their_digits() {
        // With or without an exponent, as the crate likes to write them.
        assert!(["1e-5", "0.00001"].contains(&float(1e-5).to_string().as_str()));
        assert_eq!(float(10_000.0).to_string(), "10000.0");
        assert_eq!(float(f32::NAN), Json::Null);
    }
}
