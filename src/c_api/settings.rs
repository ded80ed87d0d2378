//! The values of all options, set by key.

use super::option_row::Value;
use super::option_table::rows;
use crate::engine::LoadOptions;
use crate::sampler::{DefaultValue, ModelDefault};
use crate::session::{Prompt, SessionOptions};
use crate::{Error, Result};
use serde_json::Value as Json;
use std::ffi::c_void;

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

/// All options as JSON, as kigo_options_keys() describes it.
pub(super) fn described() -> Json {
    let settings = Settings::default();
    rows().map(|row| row.described(&settings)).collect()
}

impl Settings {
    /// Sets the option of this key.
    ///
    /// # Errors
    /// `UnknownOption` names the nearest key; `InvalidArgument` the range, or the function for this type of option.
    pub(super) fn set(&mut self, key: &str, value: Value) -> Result<()> {
        let row = rows().find(|row| row.key == key).ok_or_else(|| unknown(key))?;
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
            let row = rows().find(|row| row.key == *option).ok_or_else(|| unknown(option))?;
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
    let nearest = rows().map(|row| row.key).min_by_key(|known| distance(&shown, known)).unwrap_or_default();
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
    use crate::c_api::option_row::Values;
    use crate::c_api::option_table::{MAX_STOP_BYTES, MAX_STOPS};
    use crate::sampler::{GrammarText, Step};
    use serde_json::json;

    fn set(key: &str, value: Value) -> std::result::Result<Settings, String> {
        let mut settings = Settings::default();
        settings.set(key, value).map(|()| settings).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_unique_and_documented() {
        for (index, row) in rows().enumerate() {
            assert!(rows().skip(index + 1).all(|other| other.key != row.key), "{}", row.key);
            assert!(row.doc.ends_with('.') && !row.range().is_empty());
            assert!(!(row.show)(&Settings::default()).is_empty());
        }
    }

    #[test]
    fn the_description_has_types_ranges_and_defaults() {
        let all = described();
        let find = |key: &str| all.as_array().unwrap().iter().find(|option| option["key"] == key).unwrap();
        assert_eq!(all.as_array().unwrap().len(), rows().count());
        assert_eq!((&find("device")["type"], &find("device")["default"]), (&json!("string"), &json!("cuda")));
        assert_eq!((&find("n_batch")["default"], &find("n_batch")["lowest"]), (&Json::Null, &json!(1)));
        assert_eq!((&find("n_ctx")["default"], &find("n_ctx")["read_by"]), (&Json::Null, &json!("model_load")));
        assert_eq!((&find("temperature")["default"], &find("temperature")["highest"]), (&json!(0.8), &json!(2.0)));
        assert_eq!((&find("top_p")["above"], &find("top_p")["lowest"]), (&json!(0.0), &Json::Null));
        for row in rows() {
            let default = &find(row.key)["default"];
            let fits = match row.values {
                Values::Text { .. } => default.is_string() || default.is_null() || default.is_array(),
                Values::Integer { .. } => default.is_i64() || default.is_null(),
                _ => default.is_number(),
            };
            assert!(fits, "{}: {default}", row.key);
        }
    }

    #[test]
    fn numbers_are_set_inside_their_range_only() {
        for row in rows() {
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
        for row in rows() {
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
