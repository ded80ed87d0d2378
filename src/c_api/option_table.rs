//! The options that are not about sampling, and the order of all. The tables say which there are, what they accept and
//! what they do; [`super::sampling_table`] has the others.

use super::option_row::{Reader, Row, Values};
use super::sampling_table::SAMPLING;
use super::settings::PromptFormat;
use crate::Error;
use crate::backend::{DecodePath, Device};
use crate::engine::LoadOptions;
use crate::error::quoted;
use crate::gguf::DirectIo;
use crate::sampler::GrammarText;
use crate::session::read_template;
use crate::tokenizer::chat;
use std::path::Path;

const MAX_PATH_BYTES: usize = 4096;
pub(super) const MAX_STOPS: usize = 64;
pub(super) const MAX_STOP_BYTES: usize = 1024;
const MAX_PROMPT_CACHE_MIB: i64 = 1 << 30;
pub(super) const I32_MAX: i64 = i32::MAX as i64;

/// Every option, in the order of the header.
pub(super) fn rows() -> impl Iterator<Item = &'static Row> {
    [MODEL, PROMPT, SAMPLING, ANSWER].into_iter().flatten()
}

/// How a model is loaded.
static MODEL: &[Row] = &[
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
            set: |settings, value| settings.load.n_batch = Some(value as usize),
        },
        doc: "Most tokens of a prompt that are computed at once; who comes meanwhile waits for them. While others \
              wait, a prompt brings a quarter of that. Far into a long prompt, or where a step takes more than 80 ms, a GPU \
              computes half as many at once, or fewer still. Whoever sets more than the default accepts longer steps.",
        show: |settings| {
            let text = "what takes a GPU about 60 ms and fits, 128 to 2048; 128 on the CPU";
            settings.load.n_batch.map_or(text.to_owned(), |n| n.to_string())
        },
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
        key: "direct_io",
        reader: Reader::ModelLoad,
        values: Values::Text {
            expected: DirectIo::EXPECTED,
            set: |settings, value, row| {
                let choice = DirectIo::parse(value).ok_or_else(|| row.refuse(quoted(value.as_bytes())))?;
                settings.load.direct_io = choice;
                Ok(())
            },
        },
        doc: "Whether weights for a GPU that the system does not have in memory are read past its cache, which the next load \
              then does not find there. \"auto\": if the file has more than half of the memory that is available.",
        show: |settings| format!("\"{}\"", settings.load.direct_io.name()),
    },
    Row {
        key: "decode_path",
        reader: Reader::ModelLoad,
        values: Values::Text {
            expected: DecodePath::EXPECTED,
            set: |settings, value, row| {
                let path = DecodePath::parse(value).ok_or_else(|| row.refuse(quoted(value.as_bytes())))?;
                settings.load.decode_path = path;
                Ok(())
            },
        },
        doc: "How a GPU computes the next token of an inference that runs alone, or of a few together: as one kernel \
              (\"step\"), where that can run the model, or one kernel for each stage (\"stages\"). \"auto\" takes what was \
              measured to be faster. The results are the same.",
        show: |settings| format!("\"{}\"", settings.load.decode_path.name()),
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
];

/// What is asked, and how much is answered.
static PROMPT: &[Row] = &[
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
];

/// What is generated.
static ANSWER: &[Row] = &[
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
