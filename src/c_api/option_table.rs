//! The options. One table says which there are, what they accept and what they do.

use crate::backend::Device;
use crate::engine::LoadOptions;
use crate::error::quoted;
use crate::session::SessionOptions;
use crate::{Error, Result};
use std::ffi::c_void;
use std::ops::RangeInclusive;

/// How the prompt of an inference is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum PromptFormat {
    #[default]
    Text,
    User,
    Chat,
}

/// What a host wants to be called with while a model loads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listener {
    pub(super) progress: unsafe extern "C" fn(*mut c_void, i64, i64) -> i32,
    pub(super) user_data: *mut c_void,
}

// SAFETY: only the host follows the pointer, and kigo_options_set_progress() says on which thread it gets it back.
unsafe impl Send for Listener {}

/// The values of all options.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) load: LoadOptions,
    pub(super) session: SessionOptions,
    pub(super) prompt_format: PromptFormat,
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
    /// Above 0 and up to `highest`.
    Positive {
        highest: f64,
        set: fn(&mut Settings, f64),
    },
}

const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;
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
              into the model's chat template. \"chat\": a JSON array of messages, such as \
              [{\"role\": \"user\", \"content\": \"Hello\"}], put into the model's chat template.",
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
            Values::Positive { highest, .. } => format!("a number above 0 and up to {highest}"),
        }
    }

    /// The function that sets the option.
    pub(super) fn setter(&self) -> &'static str {
        match self.values {
            Values::Text { .. } => "kigo_options_set_str",
            Values::Integer { .. } => "kigo_options_set_i64",
            Values::Number { .. } | Values::Positive { .. } => "kigo_options_set_f64",
        }
    }

    fn refuse(&self, found: impl ToString) -> Error {
        Error::invalid_argument(self.key, self.range(), found)
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
            (Values::Number { .. } | Values::Positive { .. }, Value::Integer(value)) => {
                self.set(settings, Value::Number(value as f64))
            }
            (Values::Number { highest, set }, Value::Number(value)) => {
                self.set_number(settings, value, 0.0..=*highest, *set)
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
        match ROWS.iter().find(|row| row.key == key) {
            Some(row) => row.set(self, value),
            None => Err(unknown(key)),
        }
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
                Values::Text { .. } => assert!(set(row.key, Value::Text("")).is_err()),
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
    fn a_default_model_goes_to_the_gpu() {
        assert_eq!(Settings::default().load.device, "cuda");
    }
}
