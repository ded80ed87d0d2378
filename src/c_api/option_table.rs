//! The options. One table says which there are, what they accept and what they do.

use crate::backend::Device;
use crate::engine::LoadOptions;
use crate::error::quoted;
use crate::sampler::{BIAS_EXPECTED, DefaultValue, GrammarText, ModelDefault, SamplingParams, Step, parse_bias};
use crate::session::{Prompt, SessionOptions, read_template};
use crate::tokenizer::chat;
use crate::{Error, Result};
use std::ffi::c_void;
use std::ops::RangeInclusive;
use std::path::Path;

/// How the prompt of an inference is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum PromptFormat {
    #[default]
    Text,
    User,
    Chat,
}

impl PromptFormat {
    /// The prompt that a text of this format is.
    pub(super) fn prompt(self, text: &str) -> Prompt<'_> {
        match self {
            PromptFormat::Text => Prompt::Text(text),
            PromptFormat::User => Prompt::User(text),
            PromptFormat::Chat => Prompt::Chat(text),
        }
    }
}

/// What a host wants to be called with while a model loads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listener {
    pub(super) progress: unsafe extern "C" fn(*mut c_void, i64, i64) -> i32,
    pub(super) user_data: *mut c_void,
}

// SAFETY: only the host follows the pointer, and kigo_options_set_progress() says on which thread it gets it back.
unsafe impl Send for Listener {}
// SAFETY: as above; whoever shares it can only copy it.
unsafe impl Sync for Listener {}

/// The values of all options.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) load: LoadOptions,
    pub(super) session: SessionOptions,
    pub(super) prompt_format: PromptFormat,
    /// Keys of the options that were set.
    given: Vec<&'static str>,
    pub(super) progress: Option<Listener>,
}

/// One option.
pub(super) struct Row {
    pub(super) key: &'static str,
    /// Which call reads it.
    pub(super) reader: Reader,
    pub(super) values: Values,
    pub(super) doc: &'static str,
    /// Its value, or what stands for one that was not set.
    pub(super) show: fn(&Settings) -> String,
}

/// The call that reads an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    ModelLoad,
    InferenceStart,
}

/// What an option accepts, and how it is set.
pub(super) enum Values {
    Text {
        expected: &'static str,
        set: fn(&mut Settings, &str, &'static Row) -> Result<()>,
    },
    Integer {
        lowest: i64,
        highest: i64,
        set: fn(&mut Settings, i64),
    },
    /// From 0 to `highest`.
    Number {
        highest: f64,
        set: fn(&mut Settings, f64),
    },
    /// From `lowest` to `highest`.
    Range {
        lowest: f64,
        highest: f64,
        set: fn(&mut Settings, f64),
    },
    /// Above 0 and up to `highest`.
    Positive {
        highest: f64,
        set: fn(&mut Settings, f64),
    },
}

const MAX_PATH_BYTES: usize = 4096;
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;
const MAX_BREAKERS: usize = 64;
const MAX_BREAKER_BYTES: usize = 64;
const MAX_BIAS_BYTES: usize = 4 << 20;
const MAX_PROMPT_CACHE_MIB: i64 = 1 << 30;
const I32_MAX: i64 = i32::MAX as i64;

/// Every option, in the order of the header.
pub(super) static ROWS: &[Row] = &[
    Row {
        key: "device",
        reader: Reader::ModelLoad,
        values: Values::Text {
            expected: Device::EXPECTED,
            set: |settings, value, row| {
                Device::parse(value).ok_or_else(|| row.refuse(quoted(value.as_bytes())))?;
                settings.load.device = value.to_owned();
                Ok(())
            },
        },
        doc: "Where the model lives and runs; \"cuda\" is the first GPU. Only \"auto\" chooses by itself: the first \
              GPU, or the CPU if there is none.",
        show: |settings| format!("\"{}\"", settings.load.device),
    },
    Row {
        key: "n_ctx",
        reader: Reader::ModelLoad,
        values: Values::Integer {
            lowest: 1,
            highest: LoadOptions::MAX_CTX as i64,
            set: |settings, value| settings.load.n_ctx = Some(value as usize),
        },
        doc: "Size of the context of an inference in tokens: prompt and generated tokens together. Texts that are longer \
              than the model was trained for (\"n_ctx_train\") are possible, but get worse; a model whose positions \
              are learned has no others.",
        show: |settings| {
            settings
                .load
                .n_ctx
                .map_or("what the model was trained for, or less if that is very long".to_owned(), |n| n.to_string())
        },
    },
    Row {
        key: "n_threads",
        reader: Reader::ModelLoad,
        values: Values::Integer {
            lowest: 1,
            highest: LoadOptions::MAX_THREADS as i64,
            set: |settings, value| settings.load.n_threads = Some(value as usize),
        },
        doc: "Threads that compute on the CPU.",
        show: |settings| settings.load.n_threads.map_or("one per core".to_owned(), |n| n.to_string()),
    },
    Row {
        key: "n_batch",
        reader: Reader::ModelLoad,
        values: Values::Integer {
            lowest: 1,
            highest: LoadOptions::MAX_BATCH as i64,
            set: |settings, value| settings.load.n_batch = value as usize,
        },
        doc: "Most tokens of a prompt that are computed at once; a cancellation waits for one such step.",
        show: |settings| settings.load.n_batch.to_string(),
    },
    Row {
        key: "tokenizer",
        reader: Reader::ModelLoad,
        values: Values::Text {
            expected: "\"auto\" or the path of a tokenizer.json",
            set: |settings, value, row| {
                if !(1..=MAX_PATH_BYTES).contains(&value.len()) {
                    return Err(row.refuse(format!("{} bytes", value.len())));
                }
                settings.load.tokenizer = value.to_owned();
                Ok(())
            },
        },
        doc: "Where the tokens come from. \"auto\": the file's own vocabulary; if it has none, or names a tokenizer that kigo \
              does not know, the tokenizer.json beside it. Otherwise a tokenizer.json, whatever the file has. Special \
              ids and the chat template stay those of the file, where it has them.",
        show: |settings| format!("\"{}\"", settings.load.tokenizer),
    },
    Row {
        key: "prompt_cache_mib",
        reader: Reader::ModelLoad,
        values: Values::Integer {
            lowest: 0,
            highest: MAX_PROMPT_CACHE_MIB,
            set: |settings, value| settings.load.prompt_cache = (value as u64) << 20,
        },
        doc: "Most MiB of memory, where the model lives, that freed inferences leave for others: one that begins with the same \
              tokens does not compute them again (\"cached_tokens\"). What was used last stays, and all of it makes room at \
              once when memory is needed for an inference. 0: they leave nothing.",
        show: |settings| (settings.load.prompt_cache >> 20).to_string(),
    },
    Row {
        key: "prompt_format",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "\"text\", \"user\" or \"chat\"",
            set: |settings, value, row| {
                settings.prompt_format = match value {
                    "text" => PromptFormat::Text,
                    "user" => PromptFormat::User,
                    "chat" => PromptFormat::Chat,
                    _ => return Err(row.refuse(quoted(value.as_bytes()))),
                };
                Ok(())
            },
        },
        doc: "What the prompt is. \"text\": a text that the model goes on from. \"user\": one message of a user, put \
              into the chat template. \"chat\": a chat in JSON, put into the chat template; see \"Chats\".",
        show: |settings| {
            match settings.prompt_format {
                PromptFormat::Text => "\"text\"",
                PromptFormat::User => "\"user\"",
                PromptFormat::Chat => "\"chat\"",
            }
            .to_owned()
        },
    },
    Row {
        key: "chat_template",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "a Jinja template of 1 to 262144 bytes",
            set: |settings, value, row| {
                if !(1..=chat::MAX_SOURCE).contains(&value.len()) {
                    return Err(row.refuse(format!("{} bytes", value.len())));
                }
                settings.session.template = Some(value.to_owned());
                Ok(())
            },
        },
        doc: "A chat template to use instead of the model's.",
        show: |settings| if settings.session.template.is_some() { "a text" } else { "the model's" }.to_owned(),
    },
    Row {
        key: "chat_template_file",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "the path of a file with a Jinja template of 1 to 262144 bytes",
            set: |settings, value, _| {
                settings.session.template = Some(read_template(Path::new(value))?);
                Ok(())
            },
        },
        doc: "A file with a chat template to use instead of the model's. It is read when the option is set, and sets \
              \"chat_template\".",
        show: |settings| if settings.session.template.is_some() { "a text" } else { "the model's" }.to_owned(),
    },
    Row {
        key: "chat_template_name",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "the name of one of the model's chat templates",
            set: |settings, value, row| {
                if value.is_empty() {
                    return Err(row.refuse("an empty name"));
                }
                settings.session.template_name = Some(value.to_owned());
                Ok(())
            },
        },
        doc: "Which of the model's chat templates to use; \"default\" is the one that its file does not name. \
              \"chat_template\" wins.",
        show: |settings| match &settings.session.template_name {
            Some(name) => format!("\"{name}\""),
            None => "\"tool_use\" if the chat has tools and the model such a template, else \"default\"".to_owned(),
        },
    },
    Row {
        key: "max_tokens",
        reader: Reader::InferenceStart,
        values: Values::Integer {
            lowest: 0,
            highest: I32_MAX,
            set: |settings, value| settings.session.max_tokens = Some(value as usize),
        },
        doc: "Most tokens to generate; 0 generates none.",
        show: |settings| {
            settings.session.max_tokens.map_or("until the context is full".to_owned(), |most| most.to_string())
        },
    },
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
            names.join(",")
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
    Row {
        key: "stop",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "a text of 1 to 1024 bytes",
            set: |settings, value, row| {
                if !(1..=MAX_STOP_BYTES).contains(&value.len()) {
                    return Err(row.refuse(format!("{} bytes", value.len())));
                }
                let stops = &mut settings.session.stop;
                if stops.len() >= MAX_STOPS {
                    return Err(Error::Limit { what: "stop strings", limit: MAX_STOPS as u64 });
                }
                stops.push(value.to_owned());
                Ok(())
            },
        },
        doc: "A text that ends the generation and is not part of it. Setting it again adds another, up to 64.",
        show: |settings| if settings.session.stop.is_empty() { "none" } else { "some" }.to_owned(),
    },
    Row {
        key: "json_schema",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "a JSON schema of 1 to 262144 bytes, and no regex or lark beside it",
            set: |settings, value, row| row.set_grammar(settings, value, GrammarText::JsonSchema),
        },
        doc: "The generated text is JSON of this schema; {} is any JSON. It is checked when the inference starts: KIGO_BAD_GRAMMAR.",
        show: |settings| {
            match settings.session.grammar {
                Some(GrammarText::JsonSchema(_)) => "some",
                _ => "none",
            }
            .to_owned()
        },
    },
    Row {
        key: "regex",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "a regular expression of 1 to 65536 bytes, and no json_schema or lark beside it",
            set: |settings, value, row| row.set_grammar(settings, value, GrammarText::Regex),
        },
        doc: "The generated text as a whole matches this regular expression, in the syntax of Rust's crate regex.",
        show: |settings| {
            match settings.session.grammar {
                Some(GrammarText::Regex(_)) => "some",
                _ => "none",
            }
            .to_owned()
        },
    },
    Row {
        key: "lark",
        reader: Reader::InferenceStart,
        values: Values::Text {
            expected: "a grammar of 1 to 65536 bytes, and no json_schema or regex beside it",
            set: |settings, value, row| row.set_grammar(settings, value, GrammarText::Lark),
        },
        doc: "The generated text is one of this grammar, in the variant of Lark that the library llguidance describes.",
        show: |settings| {
            match settings.session.grammar {
                Some(GrammarText::Lark(_)) => "some",
                _ => "none",
            }
            .to_owned()
        },
    },
    Row {
        key: "logprobs",
        reader: Reader::InferenceStart,
        values: Values::Integer {
            lowest: 0,
            highest: 1000,
            set: |settings, value| settings.session.sampling.logprobs = value as u32,
        },
        doc: "If not 0, the logits of every token are kept for kigo_inference_logits(), and kigo_inference_logprobs() tells so many of the most likely tokens. On a GPU each token takes longer then.",
        show: |settings| settings.session.sampling.logprobs.to_string(),
    },
];

/// A value on its way to an option.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Text(&'a str),
    Integer(i64),
    Number(f64),
}

impl Row {
    /// What the option accepts, in words.
    pub(super) fn range(&self) -> String {
        match &self.values {
            Values::Text { expected, .. } => (*expected).to_owned(),
            Values::Integer { lowest, highest, .. } => format!("an integer from {lowest} to {highest}"),
            Values::Number { highest, .. } => format!("a number from 0 to {highest}"),
            Values::Range { lowest, highest, .. } => format!("a number from {lowest} to {highest}"),
            Values::Positive { highest, .. } => format!("a number above 0 and up to {highest}"),
        }
    }

    /// The function that sets the option.
    pub(super) fn setter(&self) -> &'static str {
        match self.values {
            Values::Text { .. } => "kigo_options_set_str",
            Values::Integer { .. } => "kigo_options_set_i64",
            Values::Number { .. } | Values::Range { .. } | Values::Positive { .. } => "kigo_options_set_f64",
        }
    }

    fn refuse(&self, found: impl ToString) -> Error {
        Error::invalid_argument(self.key, self.range(), found)
    }

    fn set_grammar(&self, settings: &mut Settings, text: &str, of: fn(String) -> GrammarText) -> Result<()> {
        if !(1..=of(String::new()).max_bytes()).contains(&text.len()) {
            return Err(self.refuse(format!("{} bytes", text.len())));
        }
        if let Some(other) = settings.session.grammar.as_ref().filter(|other| other.option() != self.key) {
            return Err(self.refuse(other.option()));
        }
        settings.session.grammar = Some(of(text.to_owned()));
        Ok(())
    }

    fn set_number(
        &self,
        settings: &mut Settings,
        value: f64,
        range: RangeInclusive<f64>,
        set: fn(&mut Settings, f64),
    ) -> Result<()> {
        // A NaN is in no range.
        if !range.contains(&value) {
            return Err(self.refuse(value));
        }
        set(settings, value);
        Ok(())
    }

    fn set(&'static self, settings: &mut Settings, value: Value) -> Result<()> {
        match (&self.values, value) {
            (Values::Text { set, .. }, Value::Text(value)) => set(settings, value, self),
            (Values::Integer { lowest, highest, set }, Value::Integer(value)) => {
                if !(*lowest..=*highest).contains(&value) {
                    return Err(self.refuse(value));
                }
                set(settings, value);
                Ok(())
            }
            (Values::Number { .. } | Values::Range { .. } | Values::Positive { .. }, Value::Integer(value)) => {
                self.set(settings, Value::Number(value as f64))
            }
            (Values::Number { highest, set }, Value::Number(value)) => {
                self.set_number(settings, value, 0.0..=*highest, *set)
            }
            (Values::Range { lowest, highest, set }, Value::Number(value)) => {
                self.set_number(settings, value, *lowest..=*highest, *set)
            }
            (Values::Positive { highest, set }, Value::Number(value)) => {
                // Smaller ones would become 0 on their way to 32 bits.
                self.set_number(settings, value, f64::from(f32::MIN_POSITIVE)..=*highest, *set)
            }
            (_, other) => {
                let found = match other {
                    Value::Text(value) => format!("the text {}", quoted(value.as_bytes())),
                    Value::Integer(value) => format!("the integer {value}"),
                    Value::Number(value) => format!("the number {value}"),
                };
                let expected = format!("{}; set it with {}()", self.range(), self.setter());
                Err(Error::invalid_argument(self.key, expected, found))
            }
        }
    }
}

impl Settings {
    /// Sets the option of this key.
    ///
    /// # Errors
    /// `UnknownOption` names the nearest key; `InvalidArgument` the range, or the function for this type of option.
    pub(super) fn set(&mut self, key: &str, value: Value) -> Result<()> {
        let row = ROWS.iter().find(|row| row.key == key).ok_or_else(|| unknown(key))?;
        row.set(self, value)?;
        if !self.given.contains(&row.key) {
            self.given.push(row.key);
        }
        Ok(())
    }

    /// These settings with the defaults of a model for what was not set.
    ///
    /// # Errors
    /// `InvalidArgument` naming the model's key and the option, where the option does not allow what the model has.
    pub(super) fn for_model(mut self, defaults: &[ModelDefault]) -> Result<Settings> {
        for ModelDefault { key, option, value } in defaults {
            if self.given.contains(option) {
                continue;
            }
            let value = match value {
                DefaultValue::Integer(value) => Value::Integer(*value),
                DefaultValue::Number(value) => Value::Number(*value),
                DefaultValue::Text(value) => Value::Text(value),
            };
            let row = ROWS.iter().find(|row| row.key == *option).ok_or_else(|| unknown(option))?;
            row.set(&mut self, value).map_err(|error| {
                let expected = format!("what the option {option} allows; set that to choose another");
                Error::invalid_argument(key, expected, error)
            })?;
        }
        Ok(self)
    }
}

/// The error for a key that no option has.
fn unknown(key: &str) -> Error {
    const MOST: usize = 64;
    let shown: String = key.chars().take(MOST).collect();
    let nearest = ROWS.iter().map(|row| row.key).min_by_key(|known| distance(&shown, known)).unwrap_or_default();
    Error::UnknownOption { key: shown, nearest }
}

/// How many letters must be put in, taken out or changed to get from one text to the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(!a.eq_ignore_ascii_case(&b));
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    fn set(key: &str, value: Value) -> std::result::Result<Settings, String> {
        let mut settings = Settings::default();
        settings.set(key, value).map(|()| settings).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_unique_and_documented() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(ROWS[index + 1..].iter().all(|other| other.key != row.key), "{}", row.key);
            assert!(row.doc.ends_with('.') && !row.range().is_empty());
            assert!(!(row.show)(&Settings::default()).is_empty());
        }
    }

    #[test]
    fn numbers_are_set_inside_their_range_only() {
        for row in ROWS {
            match &row.values {
                Values::Integer { lowest, highest, .. } => {
                    for value in [*lowest, *highest] {
                        let settings = set(row.key, Value::Integer(value)).unwrap();
                        assert_eq!((row.show)(&settings), value.to_string());
                        settings.session.sampling.validate().unwrap();
                    }
                    for value in [lowest.checked_sub(1), highest.checked_add(1)].into_iter().flatten() {
                        let expected = format!("{}: expected {}, found {value}", row.key, row.range());
                        assert_eq!(set(row.key, Value::Integer(value)).unwrap_err(), expected);
                    }
                }
                Values::Number { highest, .. } | Values::Positive { highest, .. } => {
                    let lowest = if set(row.key, Value::Integer(0)).is_ok() { 0.0 } else { 1.0 / 1024.0 };
                    for value in [lowest, *highest] {
                        let settings = set(row.key, Value::Number(value)).unwrap();
                        assert_eq!((row.show)(&settings), value.to_string());
                        settings.session.sampling.validate().unwrap();
                    }
                    let settings = set(row.key, Value::Number(f64::from(f32::MIN_POSITIVE))).unwrap();
                    settings.session.sampling.validate().unwrap();
                    for value in [-1e-300, highest + 1e-9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                        let expected = format!("{}: expected {}, found {value}", row.key, row.range());
                        assert_eq!(set(row.key, Value::Number(value)).unwrap_err(), expected);
                    }
                    assert_eq!(lowest != 0.0, row.range().contains("above 0"));
                    assert!(lowest == 0.0 || set(row.key, Value::Number(1e-300)).is_err());
                    set(row.key, Value::Integer(1)).unwrap();
                    assert!(set(row.key, Value::Integer(i64::MIN)).is_err());
                }
                Values::Range { lowest, highest, .. } => {
                    for value in [*lowest, *highest] {
                        let settings = set(row.key, Value::Number(value)).unwrap();
                        assert_eq!((row.show)(&settings), value.to_string());
                        settings.session.sampling.validate().unwrap();
                    }
                    for value in [lowest - 1e-9, highest + 1e-9, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                        let expected = format!("{}: expected {}, found {value}", row.key, row.range());
                        assert_eq!(set(row.key, Value::Number(value)).unwrap_err(), expected);
                    }
                    set(row.key, Value::Integer(1)).unwrap();
                }
                Values::Text { .. } => assert!(set(row.key, Value::Text("")).is_err(), "{}", row.key),
            }
        }
    }

    #[test]
    fn a_wrong_type_names_the_right_setter() {
        for row in ROWS {
            let text = Value::Text("1");
            let wrong = if row.setter() == "kigo_options_set_str" { Value::Integer(1) } else { text };
            let message = set(row.key, wrong).unwrap_err();
            assert!(message.starts_with(row.key) && message.contains(row.setter()), "{message}");
        }
        let message = set("n_ctx", Value::Number(1.0)).unwrap_err();
        assert!(message.contains("kigo_options_set_i64()") && message.contains("the number 1"), "{message}");
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        for (key, nearest) in [
            ("temprature", "temperature"),
            ("Top_K", "top_k"),
            ("maxtokens", "max_tokens"),
            ("n_threadz", "n_threads"),
            ("stops", "stop"),
        ] {
            let message = set(key, Value::Integer(1)).unwrap_err();
            assert_eq!(message, format!("unknown option \"{key}\"; did you mean \"{nearest}\"?"));
        }
        assert!(set(&"x".repeat(100_000), Value::Integer(1)).unwrap_err().len() < 200);
        assert!(set("", Value::Integer(1)).is_err());
    }

    #[test]
    fn devices_are_checked_at_once() {
        for device in ["cuda", "cpu", "auto", "cuda:0", "cuda:15"] {
            assert_eq!(set("device", Value::Text(device)).unwrap().load.device, device);
        }
        for device in ["", "CUDA", "cuda:", "cuda:-1", "cuda:1x", "cuda:1000", "gpu", "\u{1b}[31m"] {
            assert!(set("device", Value::Text(device)).unwrap_err().starts_with("device: expected \"cuda\""));
        }
    }

    #[test]
    fn stop_strings_are_added_up_to_their_limits() {
        let mut settings = Settings::default();
        for index in 0..MAX_STOPS {
            settings.set("stop", Value::Text(&format!("stop {index}"))).unwrap();
        }
        let error = settings.set("stop", Value::Text("one more")).unwrap_err();
        assert_eq!(error.status(), Status::Limit);
        assert_eq!(settings.session.stop.len(), MAX_STOPS);
        assert!(set("stop", Value::Text(&"x".repeat(MAX_STOP_BYTES))).is_ok());
        assert!(set("stop", Value::Text(&"x".repeat(MAX_STOP_BYTES + 1))).is_err());
    }

    #[test]
    fn grammars_exclude_each_other() {
        let mut settings = Settings::default();
        settings.set("regex", Value::Text("a+")).unwrap();
        settings.set("regex", Value::Text("b+")).unwrap();
        for key in ["json_schema", "lark"] {
            let message = settings.set(key, Value::Text("{}")).unwrap_err().to_string();
            assert!(message.starts_with(key) && message.ends_with("found regex"), "{message}");
        }
        assert_eq!(settings.session.grammar, Some(GrammarText::Regex("b+".into())));
        for (key, most) in [("lark", 65536), ("regex", 65536), ("json_schema", 262_144)] {
            assert!(set(key, Value::Text(&"x".repeat(most))).is_ok());
            assert!(set(key, Value::Text(&"x".repeat(most + 1))).unwrap_err().contains(&most.to_string()));
        }
    }

    #[test]
    fn breakers_take_the_place_of_the_defaults() {
        let mut settings = Settings::default();
        let breakers = |settings: &Settings| settings.session.sampling.dry_sequence_breakers.clone();
        assert_eq!(breakers(&settings), None);
        settings.set("dry_sequence_breaker", Value::Text("\n\n")).unwrap();
        settings.set("dry_sequence_breaker", Value::Text("- ")).unwrap();
        assert_eq!(breakers(&settings).unwrap(), ["\n\n", "- "]);
        settings.set("dry_sequence_breaker", Value::Text("none")).unwrap();
        assert!(breakers(&settings).unwrap().is_empty());
    }

    #[test]
    fn what_was_set_wins_over_the_model() {
        let default = |option, key, value| ModelDefault { key, option, value };
        let defaults = [
            default("temperature", "general.sampling.temp", DefaultValue::Number(0.5)),
            default("top_k", "general.sampling.top_k", DefaultValue::Integer(7)),
            default("samplers", "general.sampling.sequence", DefaultValue::Text("top_k;temp".into())),
        ];
        let mut settings = Settings::default();
        settings.set("top_k", Value::Integer(40)).unwrap();
        let sampling = settings.for_model(&defaults).unwrap().session.sampling;
        assert_eq!((sampling.temperature, sampling.top_k), (0.5, 40));
        assert_eq!(*sampling.samplers, [Step::TopK, Step::Temperature]);
        let hot = [default("temperature", "general.sampling.temp", DefaultValue::Number(9.0))];
        let message = Settings::default().for_model(&hot).unwrap_err().to_string();
        assert!(message.starts_with("general.sampling.temp: ") && message.contains("set that"), "{message}");
        let mut settings = Settings::default();
        settings.set("temperature", Value::Integer(1)).unwrap();
        assert_eq!(settings.for_model(&hot).unwrap().session.sampling.temperature, 1.0);
    }

    #[test]
    fn a_default_model_goes_to_the_gpu() {
        assert_eq!(Settings::default().load.device, "cuda");
    }
}
