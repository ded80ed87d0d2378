//! What a row of the tables of options is, and how it is set and shown.

use super::settings::Settings;
use crate::error::quoted;
use crate::sampler::GrammarText;
use crate::{Error, Result};
use serde_json::{Value as Json, json};
use std::ops::RangeInclusive;

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

    /// The option as JSON.
    pub(super) fn described(&self, settings: &Settings) -> Json {
        let show = (self.show)(settings);
        let (kind, range) = match &self.values {
            Values::Text { .. } => ("string", json!({})),
            Values::Integer { lowest, highest, .. } => ("integer", json!({ "lowest": lowest, "highest": highest })),
            Values::Number { highest, .. } => ("number", json!({ "lowest": 0.0, "highest": highest })),
            Values::Range { lowest, highest, .. } => ("number", json!({ "lowest": lowest, "highest": highest })),
            Values::Positive { highest, .. } => ("number", json!({ "above": 0.0, "highest": highest })),
        };
        let mut option = json!({
            "key": self.key,
            "read_by": match self.reader {
                Reader::ModelLoad => "model_load",
                Reader::InferenceStart => "inference_start",
            },
            "type": kind,
            "expected": self.range(),
            // What is no fixed value is shown in words, which are no JSON.
            "default": serde_json::from_str::<Json>(&show).unwrap_or(Json::Null),
            "default_text": show,
            "doc": self.doc,
        });
        if let (Json::Object(option), Json::Object(range)) = (&mut option, range) {
            option.extend(range);
        }
        option
    }

    pub(super) fn refuse(&self, found: impl ToString) -> Error {
        Error::invalid_argument(self.key, self.range(), found)
    }

    pub(super) fn set_grammar(&self, settings: &mut Settings, text: &str, of: fn(String) -> GrammarText) -> Result<()> {
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

    pub(super) fn set(&'static self, settings: &mut Settings, value: Value) -> Result<()> {
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
