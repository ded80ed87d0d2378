//! What the environment says to a worker: the device, the chat template, and options by key.

use crate::c_api::option_row::{Row, Value};
use crate::c_api::option_table::rows;
use crate::c_api::settings::Settings;
use crate::error::quoted;
use crate::{Error, Result};
use std::ffi::OsString;
use std::sync::{Mutex, PoisonError};

/// Options that come with each call, or that no worker may change.
const GIVEN: [&str; 5] = ["device", "prompt_format", "max_tokens", "temperature", "seed"];

/// The environment as `cuda_init` found it.
pub(super) struct Environment {
    /// `KIGO_DEVICE=cpu`: the CPU stands for the only device.
    pub(super) cpu: bool,
    /// Prompts without control tokens are put into the chat template; `KIGO_WORKER_TEMPLATE=0` says no.
    pub(super) template: bool,
    /// `KIGO_WORKER_TOP_K` and the like, else the defaults; locked, as what a host may set besides is for one thread.
    settings: Mutex<Settings>,
}

impl Environment {
    /// Reads the environment of the process.
    ///
    /// # Errors
    /// `InvalidArgument` names the first variable that has no meaning, and what it may be.
    pub(super) fn read() -> Result<Environment> {
        Environment::from(|name| std::env::var_os(name))
    }

    /// The options that the environment sets, with the defaults of the others.
    pub(super) fn settings(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn from(get: impl Fn(&str) -> Option<OsString>) -> Result<Environment> {
        let get = |name: &str| -> Result<Option<String>> {
            match get(name).filter(|value| !value.is_empty()).map(OsString::into_string) {
                None => Ok(None),
                Some(Ok(value)) => Ok(Some(value)),
                Some(Err(value)) => Err(Error::invalid_argument(name, "UTF-8", quoted(value.as_encoded_bytes()))),
            }
        };
        let choice = |name: &str, no: &str, yes: &str| match get(name)?.as_deref() {
            None => Ok(None),
            Some(value) if value == no => Ok(Some(false)),
            Some(value) if value == yes => Ok(Some(true)),
            Some(other) => {
                Err(Error::invalid_argument(name, format!("\"{no}\" or \"{yes}\""), quoted(other.as_bytes())))
            }
        };
        let cpu = choice("KIGO_DEVICE", "cuda", "cpu")?.unwrap_or(false);
        let template = choice("KIGO_WORKER_TEMPLATE", "0", "1")?.unwrap_or(true);
        let mut settings = Settings::default();
        for row in rows().filter(|row| !GIVEN.contains(&row.key)) {
            let name = format!("KIGO_WORKER_{}", row.key.to_ascii_uppercase());
            if let Some(value) = get(&name)? {
                settings.set(row.key, parse(row, &name, &value)?)?;
            }
        }
        Ok(Environment { cpu, template, settings: Mutex::new(settings) })
    }
}

/// `text` as a value of the type that the option has.
fn parse<'a>(row: &Row, name: &str, text: &'a str) -> Result<Value<'a>> {
    let value = match row.setter() {
        "kigo_options_set_i64" => text.parse().ok().map(Value::Integer),
        "kigo_options_set_f64" => text.parse().ok().map(Value::Number),
        _ => Some(Value::Text(text)),
    };
    value.ok_or_else(|| Error::invalid_argument(name, row.range(), quoted(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> std::result::Result<Environment, String> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        Environment::from(find).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_set_is_the_gpu_the_template_and_the_defaults() {
        for variables in [&[][..], &[("KIGO_DEVICE", ""), ("KIGO_WORKER_TEMPLATE", ""), ("KIGO_WORKER_TOP_K", "")]] {
            let environment = read(variables).unwrap();
            assert!(!environment.cpu && environment.template);
            assert_eq!(environment.settings().session, Settings::default().session);
        }
    }

    #[test]
    fn variables_set_what_they_name() {
        let environment = read(&[
            ("KIGO_DEVICE", "cpu"),
            ("KIGO_WORKER_TEMPLATE", "0"),
            ("KIGO_WORKER_TOP_K", "7"),
            ("KIGO_WORKER_TOP_P", "0.5"),
            ("KIGO_WORKER_N_CTX", "512"),
            ("KIGO_WORKER_STOP", "\n\n"),
            ("KIGO_WORKER_SEED", "1"),
        ])
        .unwrap();
        assert!(environment.cpu && !environment.template);
        let settings = environment.settings();
        assert_eq!((settings.session.sampling.top_k, settings.session.sampling.top_p), (7, 0.5));
        assert_eq!((settings.load.n_ctx, &*settings.session.stop), (Some(512), &["\n\n".to_owned()][..]));
        assert_eq!(settings.session.sampling.seed, 0, "the seed comes with the call");
    }

    #[test]
    fn a_wrong_value_names_its_variable() {
        for (name, value) in [
            ("KIGO_DEVICE", "auto"),
            ("KIGO_DEVICE", "cuda:1"),
            ("KIGO_WORKER_TEMPLATE", "no"),
            ("KIGO_WORKER_TOP_K", "many"),
            ("KIGO_WORKER_TOP_K", "-1"),
            ("KIGO_WORKER_TOP_P", "NaN"),
            ("KIGO_WORKER_MIN_P", "1.5"),
        ] {
            let message = read(&[(name, value)]).err().unwrap_or_else(|| panic!("{name}={value} is taken"));
            let key = name.trim_start_matches("KIGO_WORKER_").to_lowercase();
            assert!(message.starts_with(name) || message.starts_with(&key), "{message}");
        }
    }
}
