//! The options that say how a token is chosen.

use super::option_row::{Reader, Row, Values};
use super::option_table::I32_MAX;
use crate::Error;
use crate::error::quoted;
use crate::sampler::{BIAS_EXPECTED, SamplingParams, Step, parse_bias};

const MAX_BREAKERS: usize = 64;
const MAX_BREAKER_BYTES: usize = 64;
const MAX_BIAS_BYTES: usize = 4 << 20;

/// How a token is chosen.
pub(super) static SAMPLING: &[Row] = &[
    Row {
        key: "temperature",
        reader: Reader::InferenceStart,
        values: Values::Number {
            highest: 2.0,
            set: |settings, value| settings.session.sampling.temperature = value as f32,
        },
        doc: "Divides the logits before a token is drawn; 0 always takes the most likely token.",
        show: |settings| settings.session.sampling.temperature.to_string(),
    },
    Row {
        key: "top_k",
        reader: Reader::InferenceStart,
        values: Values::Integer {
            lowest: 0,
            highest: I32_MAX,
            set: |settings, value| settings.session.sampling.top_k = value as u32,
        },
        doc: "Draws among this many of the most likely tokens; 0 draws among all.",
        show: |settings| settings.session.sampling.top_k.to_string(),
    },
    Row {
        key: "top_p",
        reader: Reader::InferenceStart,
        values: Values::Positive {
            highest: 1.0,
            set: |settings, value| settings.session.sampling.top_p = value as f32,
        },
        doc: "Draws among the most likely tokens whose probabilities add up to this; 1 draws among all. The most \
              likely token always stays.",
        show: |settings| settings.session.sampling.top_p.to_string(),
    },
    Row {
        key: "min_p",
        reader: Reader::InferenceStart,
        values: Values::Number { highest: 1.0, set: |settings, value| settings.session.sampling.min_p = value as f32 },
        doc: "Drops tokens whose probability is less than this share of that of the most likely token; 0 drops none.",
        show: |settings| settings.session.sampling.min_p.to_string(),
    },
    Row {
        key: "repeat_penalty",
        reader: Reader::InferenceStart,
        values: Values::Positive {
            highest: 10.0,
            set: |settings, value| settings.session.sampling.repeat_penalty = value as f32,
        },
        doc: "Makes tokens that came recently less likely: their logits are divided by it if positive, multiplied if \
              negative; 1 changes nothing.",
        show: |settings| settings.session.sampling.repeat_penalty.to_string(),
    },
    Row {
        key: "repeat_last_n",
        reader: Reader::InferenceStart,
        values: Values::Integer {
            lowest: 0,
            highest: I32_MAX,
            set: |settings, value| settings.session.sampling.repeat_last_n = value as u32,
        },
        doc: "How many of the last tokens count as recent for repeat_penalty; more than there are means all.",
        show: |settings| settings.session.sampling.repeat_last_n.to_string(),
    },
    Row {
        key: "typical_p",
        reader: Reader::InferenceStart,
        values: Values::Positive {
            highest: 1.0,
            set: |settings, value| settings.session.sampling.typical_p = value as f32,
        },
        doc: "Draws among the tokens whose surprise is nearest to the expected one, as few as have this probability together; 1 draws among all.",
        show: |settings| settings.session.sampling.typical_p.to_string(),
    },
    Row {
        key: "top_n_sigma",
        reader: Reader::InferenceStart,
        values: Values::Number {
            highest: 100.0,
            set: |settings, value| settings.session.sampling.top_n_sigma = value as f32,
        },
        doc: "Drops tokens whose logits are more than this many standard deviations below the largest; 0 drops none.",
        show: |settings| settings.session.sampling.top_n_sigma.to_string(),
    },
    Row {
        key: "xtc_probability",
        reader: Reader::InferenceStart,
        values: Values::Number {
            highest: 1.0,
            set: |settings, value| settings.session.sampling.xtc_probability = value as f32,
        },
        doc: "How often the most likely tokens are left out; 0 is never.",
        show: |settings| settings.session.sampling.xtc_probability.to_string(),
    },
    Row {
        key: "xtc_threshold",
        reader: Reader::InferenceStart,
        values: Values::Number {
            highest: 1.0,
            set: |settings, value| settings.session.sampling.xtc_threshold = value as f32,
        },
        doc: "All tokens at least this likely are left out then, but for the least likely of them.",
        show: |settings| settings.session.sampling.xtc_threshold.to_string(),
    },
    Row {
        key: "min_keep",
        reader: Reader::InferenceStart,
        values: Values::Integer {
            lowest: 1,
            highest: I32_MAX,
            set: |settings, value| settings.session.sampling.min_keep = value as u32,
        },
        doc: "Each of the options that drop tokens leaves at least this many, if there are.",
        show: |settings| settings.session.sampling.min_keep.to_string(),
    },
    Row {
        key: "presence_penalty",
        reader: Reader::InferenceStart,
        values: Values::Range {
            lowest: -2.0,
            highest: 2.0,
            set: |settings, value| settings.session.sampling.presence_penalty = value as f32,
        },
        doc: "Is subtracted from the logits of tokens that came recently (\"repeat_last_n\").",
        show: |settings| settings.session.sampling.presence_penalty.to_string(),
    },
    Row {
        key: "frequency_penalty",
        reader: Reader::InferenceStart,
        values: Values::Range {
            lowest: -2.0,
            highest: 2.0,
            set: |settings, value| settings.session.sampling.frequency_penalty = value as f32,
        },
        doc: "Is subtracted once for each time that the token came recently.",
        show: |settings| settings.session.sampling.frequency_penalty.to_string(),
    },
    Row {
        key: "dry_multiplier",
        reader: Reader::InferenceStart,
        values: Values::Number {
            highest: 100.0,
            set: |settings, value| settings.session.sampling.dry_multiplier = value as f32,
        },
        doc: "Makes tokens less likely that would prolong a repetition of what came before: dry_multiplier * dry_base ^ (tokens repeated - dry_allowed_length) is subtracted from their logits; 0 turns it off.",
        show: |settings| settings.session.sampling.dry_multiplier.to_string(),
    },
    Row {
        key: "dry_base",
        reader: Reader::InferenceStart,
        values: Values::Range {
            lowest: 1.0,
            highest: 10.0,
            set: |settings, value| settings.session.sampling.dry_base = value as f32,
        },
        doc: "How fast that grows with the length of the repetition.",
        show: |settings| settings.session.sampling.dry_base.to_string(),
    },
    Row {
        key: "dry_allowed_length",
        reader: Reader::InferenceStart,
        values: Values::Integer {
            lowest: 0,
            highest: I32_MAX,
            set: |settings, value| settings.session.sampling.dry_allowed_length = value as u32,
        },
        doc: "Shorter repetitions, in tokens, are free.",
        show: |settings| settings.session.sampling.dry_allowed_length.to_string(),
    },
    Row {
        key: "dry_penalty_last_n",
        reader: Reader::InferenceStart,
        values: Values::Integer {
            lowest: 0,
            highest: I32_MAX,
            set: |settings, value| settings.session.sampling.dry_penalty_last_n = value as u32,
        },
        doc: "Among how many of the last tokens repetitions are looked for; more than there are means all.",
        show: |settings| match settings.session.sampling.dry_penalty_last_n {
            u32::MAX => "all".to_owned(),
            n => n.to_string(),
        },
    },
    Row {
        key: "dry_sequence_breaker",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "a text of 1 to 64 bytes, up to 64 times, or \"none\"",
            set: |settings, value, row| {
                if !(1..=MAX_BREAKER_BYTES).contains(&value.len()) {
                    return Err(row.refuse(format!("{} bytes", value.len())));
                }
                // The first replaces the defaults.
                let breakers = settings.session.sampling.dry_sequence_breakers.get_or_insert_default();
                if value == "none" {
                    breakers.clear();
                    return Ok(());
                }
                if breakers.len() >= MAX_BREAKERS {
                    return Err(Error::Limit { what: "sequence breakers", limit: MAX_BREAKERS as u64 });
                }
                breakers.push(value.to_owned());
                Ok(())
            },
        },
        doc: "A text that a repetition does not go beyond: it ends at tokens that contain it. Set for the first time it takes the place of the defaults, then each adds another; \"none\" takes all away.",
        show: |settings| match &settings.session.sampling.dry_sequence_breakers {
            None => format!("{:?}", SamplingParams::DRY_SEQUENCE_BREAKERS),
            Some(breakers) => format!("{breakers:?}"),
        },
    },
    Row {
        key: "dynatemp_range",
        reader: Reader::InferenceStart,
        values: Values::Number {
            highest: 2.0,
            set: |settings, value| settings.session.sampling.dynatemp_range = value as f32,
        },
        doc: "Lets the temperature follow the entropy of the candidates, so far down and up; 0 keeps it fixed.",
        show: |settings| settings.session.sampling.dynatemp_range.to_string(),
    },
    Row {
        key: "dynatemp_exponent",
        reader: Reader::InferenceStart,
        values: Values::Positive {
            highest: 10.0,
            set: |settings, value| settings.session.sampling.dynatemp_exponent = value as f32,
        },
        doc: "The power of the entropy that it follows.",
        show: |settings| settings.session.sampling.dynatemp_exponent.to_string(),
    },
    Row {
        key: "mirostat",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "\"off\" or \"v2\"",
            set: |settings, value, row| {
                settings.session.sampling.mirostat = match value {
                    "off" => false,
                    "v2" => true,
                    _ => return Err(row.refuse(quoted(value.as_bytes()))),
                };
                Ok(())
            },
        },
        doc: "\"v2\" keeps the surprise of the text near mirostat_tau, after the penalties and in place of all other options that drop tokens.",
        show: |settings| if settings.session.sampling.mirostat { "\"v2\"" } else { "\"off\"" }.to_owned(),
    },
    Row {
        key: "mirostat_tau",
        reader: Reader::InferenceStart,
        values: Values::Positive {
            highest: 100.0,
            set: |settings, value| settings.session.sampling.mirostat_tau = value as f32,
        },
        doc: "That surprise, in bits for each token.",
        show: |settings| settings.session.sampling.mirostat_tau.to_string(),
    },
    Row {
        key: "mirostat_eta",
        reader: Reader::InferenceStart,
        values: Values::Positive {
            highest: 1.0,
            set: |settings, value| settings.session.sampling.mirostat_eta = value as f32,
        },
        doc: "How fast mirostat follows it.",
        show: |settings| settings.session.sampling.mirostat_eta.to_string(),
    },
    Row {
        key: "logit_bias",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: BIAS_EXPECTED,
            set: |settings, value, row| {
                if value.len() > MAX_BIAS_BYTES {
                    return Err(Error::Limit { what: "bytes of logit_bias", limit: MAX_BIAS_BYTES as u64 });
                }
                parse_bias(value, &mut settings.session.sampling.logit_bias).map_err(|found| row.refuse(found))
            },
        },
        doc: "What is added to the logits of tokens before anything else, by token id. Setting it again adds to what it says.",
        show: |settings| if settings.session.sampling.logit_bias.is_empty() { "none" } else { "some" }.to_owned(),
    },
    Row {
        key: "samplers",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: Step::EXPECTED,
            set: |settings, value, row| {
                let steps = Step::parse_order(value)?;
                if steps.is_empty() {
                    return Err(row.refuse("none"));
                }
                settings.session.sampling.samplers = steps.into();
                Ok(())
            },
        },
        doc: "Which of the options that change or drop tokens take part, and in which order. A token is drawn after the last; logit_bias and the grammar always come first.",
        show: |settings| {
            let names: Vec<&str> = settings.session.sampling.samplers.iter().map(|step| step.name()).collect();
            format!("\"{}\"", names.join(","))
        },
    },
    Row {
        key: "seed",
        reader: Reader::InferenceStart,
        values: Values::Integer {
            lowest: 0,
            highest: i64::MAX,
            set: |settings, value| settings.session.sampling.seed = value as u64,
        },
        doc: "Start of the random numbers; the same model, prompt, options and seed give the same tokens.",
        show: |settings| settings.session.sampling.seed.to_string(),
    },
];
