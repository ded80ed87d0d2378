//! The bias of logits: what is added to the logits of tokens before anything else; minus infinity bans a token.

use serde_json::{Map, Value};

use super::SamplingParams;
use super::candidates::{Candidates, Source};
use crate::Result;
use crate::error::{quoted, try_vec};

/// What [`parse`] takes, for messages.
pub const EXPECTED: &str = "a JSON object of token ids and numbers from -1000 to 1000, or false to ban a token, such as \
                            {\"15\": -2.5, \"2\": false}";

/// Reads a JSON object whose keys are token ids, and adds what it says to `bias`, where the last word on a token counts.
/// A value is a number, or `false` or `"-inf"` for minus infinity.
///
/// # Errors
/// What was found instead, in words; `bias` is as before.
pub fn parse(json: &str, bias: &mut Vec<(u32, f32)>) -> std::result::Result<(), String> {
    let pairs: Map<String, Value> = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let mut all = try_vec(bias.len() + pairs.len(), "the biases").map_err(|error| error.to_string())?;
    all.extend_from_slice(bias);
    for (key, value) in &pairs {
        let digits = key.bytes().all(|byte| byte.is_ascii_digit());
        let id = key.parse().ok().filter(|_| digits);
        let id = id.ok_or_else(|| format!("the key {}", quoted(key.as_bytes())))?;
        let most = f64::from(SamplingParams::MAX_BIAS);
        let amount = match value {
            Value::Bool(false) => Some(f32::NEG_INFINITY),
            Value::String(text) if text == "-inf" => Some(f32::NEG_INFINITY),
            value => value.as_f64().filter(|amount| amount.abs() <= most).map(|amount| amount as f32),
        };
        let found = || format!("the value {} of {key}", quoted(value.to_string().as_bytes()));
        all.push((id, amount.ok_or_else(found)?));
    }
    order(&mut all);
    *bias = all;
    Ok(())
}

/// Puts biases into ascending order of their ids, where the last of equal ids stays.
pub(super) fn order(bias: &mut Vec<(u32, f32)>) {
    // Stable, so that the last stays last.
    bias.sort_by_key(|(id, _)| *id);
    bias.dedup_by(|next, first| {
        let same = next.0 == first.0;
        if same {
            first.1 = next.1;
        }
        same
    });
}

/// Adds the biases, which have ascending ids.
///
/// # Errors
/// `OutOfMemory`.
pub(super) fn apply(bias: &[(u32, f32)], candidates: &mut Candidates, source: Source) -> Result<()> {
    candidates.change(source, bias, |logit, amount| (*amount != f32::NEG_INFINITY).then_some(logit + amount))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn objects_add_up_and_the_last_word_counts() {
        let mut bias = Vec::new();
        parse("{\"7\": -2.5, \"3\": false, \"7\": 1}", &mut bias).unwrap();
        assert_eq!(bias, [(3, f32::NEG_INFINITY), (7, 1.0)]);
        parse(" {\"3\": 1000, \"0\": \"-inf\"} ", &mut bias).unwrap();
        assert_eq!(bias, [(0, f32::NEG_INFINITY), (3, 1000.0), (7, 1.0)]);
        parse("{}", &mut bias).unwrap();
        assert_eq!(bias.len(), 3);
    }

    /// Case T16, as far as the vocabulary does not matter.
    #[test]
    fn what_is_no_bias_is_refused_and_changes_nothing() {
        let values = ["true", "null", "[]", "\"inf\"", "1000.5", "-1e400", "NaN"];
        let values = values.map(|value| format!("{{\"1\": 1, \"2\": {value}}}"));
        let keys = ["-1", "1.5", "x", "", "+1", "4294967296"].map(|key| format!("{{\"{key}\": 1}}"));
        let whole = ["", "[]", "1", "{", "{} {}", "{\"1\"}"].map(str::to_owned);
        for json in values.iter().chain(&keys).chain(&whole) {
            let mut bias = vec![(9, 1.0)];
            assert!(!parse(json, &mut bias).unwrap_err().is_empty(), "{json}");
            assert_eq!(bias, [(9, 1.0)], "{json}");
        }
    }
}
