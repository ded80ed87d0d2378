//! What a model file says about how to sample from it: `general.sampling.*`, which llama.cpp writes and reads.

use crate::Result;
use crate::gguf::Metadata;

/// A sampling option with the value that a model's file has for it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDefault {
    /// The key in the file.
    pub key: &'static str,
    /// The option, which has the name of the parameter.
    pub option: &'static str,
    /// Its value, of the right kind but not checked against a range.
    pub value: DefaultValue,
}

/// A value of the file.
#[derive(Debug, Clone, PartialEq)]
pub enum DefaultValue {
    /// Of an option that is an integer.
    Integer(i64),
    /// Of an option that is a number.
    Number(f64),
    /// Of an option that is a text.
    Text(String),
}

const NUMBERS: [(&str, &str); 8] = [
    ("general.sampling.temp", "temperature"),
    ("general.sampling.top_p", "top_p"),
    ("general.sampling.min_p", "min_p"),
    ("general.sampling.xtc_probability", "xtc_probability"),
    ("general.sampling.xtc_threshold", "xtc_threshold"),
    ("general.sampling.penalty_repeat", "repeat_penalty"),
    ("general.sampling.mirostat_tau", "mirostat_tau"),
    ("general.sampling.mirostat_eta", "mirostat_eta"),
];

/// With what a negative number means in the file.
const INTEGERS: [(&str, &str, i64); 2] =
    [("general.sampling.top_k", "top_k", 0), ("general.sampling.penalty_last_n", "repeat_last_n", i32::MAX as i64)];

/// The version of mirostat, 0 for none.
const MIROSTAT: (&str, &str) = ("general.sampling.mirostat", "mirostat");

const ORDER: (&str, &str) = ("general.sampling.sequence", "samplers");

/// The keys of `metadata` that look like defaults and are none that kigo knows.
pub fn unknown_defaults(metadata: &Metadata) -> impl Iterator<Item = &str> {
    let known = |key: &str| {
        NUMBERS.iter().any(|(known, _)| *known == key)
            || INTEGERS.iter().any(|(known, ..)| *known == key)
            || [MIROSTAT.0, ORDER.0].contains(&key)
    };
    metadata.iter().map(|(key, _)| key).filter(move |key| key.starts_with("general.sampling.") && !known(key))
}

/// The defaults that `metadata` has.
///
/// # Errors
/// `BadFile` for a value of another kind.
pub fn model_defaults(metadata: &Metadata) -> Result<Vec<ModelDefault>> {
    let mut all = Vec::new();
    for (key, option) in NUMBERS {
        if let Some(value) = metadata.f32(key)? {
            all.push(ModelDefault { key, option, value: DefaultValue::Number(f64::from(value)) });
        }
    }
    for (key, option, negative) in INTEGERS {
        if let Some(value) = metadata.i64(key)? {
            let value = if value < 0 { negative } else { value };
            all.push(ModelDefault { key, option, value: DefaultValue::Integer(value) });
        }
    }
    let (key, option) = MIROSTAT;
    if let Some(version) = metadata.i64(key)? {
        let text = if version == 0 { "off".to_owned() } else { format!("v{version}") };
        all.push(ModelDefault { key, option, value: DefaultValue::Text(text) });
    }
    let (key, option) = ORDER;
    if let Some(text) = metadata.str(key)? {
        all.push(ModelDefault { key, option, value: DefaultValue::Text(text.to_owned()) });
    }
    Ok(all)
}
