//! Keys that change what a model computes. One that an architecture does not understand is refused, unless its value changes
//! nothing: running without it would give wrong text.

use crate::gguf::{Metadata, Value};
use crate::{Error, Result};

/// Values that change nothing.
enum Neutral {
    /// These numbers.
    Numbers(&'static [f64]),
    /// This one.
    Bool(bool),
    /// The value of another key, the first of which is left to its default.
    SameAs(&'static str),
    /// None.
    Never,
}

use Neutral::{Bool, Never, Numbers, SameAs};

/// The keys, without the name of the architecture. What changes the tensors of a file as well needs no row: a tensor that no
/// role uses is refused.
const DECISIVE: &[(&str, Neutral)] = &[
    ("attention.causal", Bool(true)),
    ("attention.clamp_kqv", Numbers(&[0.0])),
    ("attention.key_length_swa", SameAs("attention.key_length")),
    ("attention.max_alibi_bias", Numbers(&[0.0])),
    ("attention.output_scale", Numbers(&[0.0, 1.0])),
    ("attention.scale", Numbers(&[0.0])),
    ("attention.shared_kv_layers", Numbers(&[0.0])),
    ("attention.sliding_window", Numbers(&[0.0])),
    ("attention.temperature_length", Numbers(&[0.0])),
    ("attention.temperature_scale", Numbers(&[0.0])),
    ("attention.value_length_swa", SameAs("attention.value_length")),
    ("attn_logit_softcapping", Numbers(&[0.0])),
    ("embedding_scale", Numbers(&[0.0, 1.0])),
    // Softmax of all and of the chosen are the same once the weights of the chosen add up to 1.
    ("expert_gating_func", Numbers(&[0.0, 1.0, 3.0])),
    ("expert_group_count", Numbers(&[0.0, 1.0])),
    ("expert_group_used_count", Numbers(&[0.0, 1.0])),
    ("expert_shared_count", Numbers(&[0.0])),
    ("expert_weights_norm", Bool(true)),
    ("expert_weights_scale", Numbers(&[0.0, 1.0])),
    ("final_logit_softcapping", Numbers(&[0.0])),
    ("interleave_moe_layer_step", Numbers(&[0.0, 1.0])),
    ("leading_dense_block_count", Numbers(&[0.0])),
    ("logit_scale", Numbers(&[0.0, 1.0])),
    ("moe_every_n_layers", Numbers(&[0.0, 1.0])),
    ("nextn_predict_layers", Numbers(&[0.0])),
    ("pooling_type", Numbers(&[0.0])),
    ("residual_scale", Numbers(&[0.0, 1.0])),
    ("rope.dimension_count_swa", SameAs("rope.dimension_count")),
    ("rope.dimension_sections", Never),
    ("rope.freq_base_swa", SameAs("rope.freq_base")),
    ("rope.scaling.alpha", Numbers(&[0.0, 1.0])),
    ("rope.scaling.yarn_attn_factor", Numbers(&[1.0])),
    // Below 0 stands for the default.
    ("rope.scaling.yarn_ext_factor", Numbers(&[-1.0, 1.0])),
    ("rope.scaling.yarn_log_multiplier", Numbers(&[0.0])),
    ("router_logit_softcapping", Numbers(&[0.0])),
    ("use_parallel_residual", Bool(false)),
];

/// Checks that a file of the architecture `prefix` says nothing decisive but what is among `understood`.
///
/// # Errors
/// The first key that does, by name.
pub(super) fn check(metadata: &Metadata, prefix: &str, understood: &[&str]) -> Result<()> {
    for (name, neutral) in DECISIVE.iter().filter(|(name, _)| !understood.contains(name)) {
        let key = format!("{prefix}.{name}");
        let Some(value) = metadata.get(&key) else { continue };
        let expected = match neutral {
            Numbers(neutral) if number(value).is_some_and(|n| neutral.contains(&n)) => continue,
            Bool(neutral) if *value == Value::Bool(*neutral) => continue,
            SameAs(other) if metadata.get(&format!("{prefix}.{other}")) == Some(value) => continue,
            Numbers(neutral) => neutral.iter().map(|n| format!("{n} or ")).collect(),
            Bool(neutral) => format!("{neutral} or "),
            SameAs(other) => format!("the value of {prefix}.{other} or "),
            Never => String::new(),
        };
        let expected = format!("{expected}no such key, since kigo does not compute it for {prefix}");
        return Err(Error::bad_file(key, expected, value.describe()));
    }
    Ok(())
}

fn number(value: &Value) -> Option<f64> {
    match *value {
        Value::F32(n) => Some(n.into()),
        Value::F64(n) => Some(n),
        _ => value.integer().map(|n| n as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_is_decisive() {
        for architecture in super::super::ARCHITECTURES {
            for key in architecture.understands {
                assert!(DECISIVE.iter().any(|(name, _)| name == key), "{}: {key}", architecture.name);
            }
        }
    }

    #[test]
    fn decisive_keys_are_refused_unless_understood_or_neutral() {
        let with = |name: &str, value: Value| {
            let mut metadata = Metadata::new();
            metadata.insert("x.rope.freq_base", Value::F32(500.0)).unwrap();
            metadata.insert(&format!("x.{name}"), value).unwrap();
            metadata
        };
        for (name, neutral) in DECISIVE {
            let other = with(name, Value::F32(0.5));
            let text = check(&other, "x", &[]).unwrap_err().to_string();
            assert!(text.starts_with(&format!("x.{name}: expected ")) && text.contains("FLOAT32 0.5"), "{text}");
            check(&other, "x", &[name]).unwrap();
            check(&other, "y", &[]).unwrap();
            match neutral {
                Numbers(neutral) => {
                    neutral.iter().for_each(|&n| check(&with(name, Value::F64(n)), "x", &[]).unwrap());
                    neutral.iter().for_each(|&n| check(&with(name, Value::I32(n as i32)), "x", &[]).unwrap());
                }
                Bool(neutral) => {
                    check(&with(name, Value::Bool(*neutral)), "x", &[]).unwrap();
                    check(&with(name, Value::Bool(!*neutral)), "x", &[]).unwrap_err();
                }
                SameAs(_) | Never => (),
            }
        }
        check(&with("rope.freq_base_swa", Value::F32(500.0)), "x", &[]).unwrap();
    }
}
