//! One generation behind a handle: one caller at a time moves it on, everybody may ask how it stands.

use super::boundary::{Outcome, caught};
use super::error::Failure;
use super::model::Fact;
use super::settings::{PromptFormat, Settings};
use crate::engine::Engine;
use crate::log::{self, Level};
use crate::session::{FinishReason, Past, Prompt, Session};
use crate::{Error, Result, Status};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// Why a generation ended: name in C, number, meaning.
pub(super) const FINISH_REASONS: [(&str, i32, &str); 8] = [
    ("KIGO_FINISH_RUNNING", RUNNING, "It has not ended."),
    ("KIGO_FINISH_END_OF_GENERATION", 1, "The model ended it."),
    ("KIGO_FINISH_STOP_STRING", 2, "A stop string came; it is not part of the text."),
    ("KIGO_FINISH_MAX_TOKENS", 3, "max_tokens were generated."),
    ("KIGO_FINISH_CONTEXT_FULL", 4, "The context is full."),
    ("KIGO_FINISH_CANCELLED", 5, "It was cancelled."),
    ("KIGO_FINISH_ERROR", FAILED, "The last call failed; kigo_inference_last_error() says why."),
    ("KIGO_FINISH_GRAMMAR", 7, "The grammar is complete and allows nothing more."),
];
pub(super) const RUNNING: i32 = 0;
pub(super) const FAILED: i32 = 6;

fn number(reason: FinishReason) -> i32 {
    match reason {
        FinishReason::EndOfGeneration => 1,
        FinishReason::StopString => 2,
        FinishReason::MaxTokens => 3,
        FinishReason::ContextFull => 4,
        FinishReason::Cancelled => 5,
        FinishReason::Grammar => 7,
    }
}

/// What may be asked while another thread is generating: the state after the last call that ended, and how far the prompt is.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    pub(super) finish_reason: i32,
    prompt_tokens: u64,
    cached_tokens: u64,
    past: Past,
    generated_tokens: u64,
    text_size: u64,
    prompt_time: Duration,
    generate_time: Duration,
    queue_time: Duration,
    first_token_time: Duration,
    pub(super) last_failure: Option<Failure>,
}

impl Report {
    /// How the generation ended, for the log.
    fn ended(&self) -> String {
        let reason = FINISH_REASONS.iter().find(|(_, number, _)| *number == self.finish_reason);
        let reason = reason.map_or("", |(name, ..)| name);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        format!(
            "an inference ended: {reason}, {} tokens of prompt in {:.1} ms, {} generated in {:.1} ms, {:.1} ms waited",
            self.prompt_tokens,
            ms(self.prompt_time),
            self.generated_tokens,
            ms(self.generate_time),
            ms(self.queue_time)
        )
    }

    fn count(&mut self, session: &Session) {
        self.prompt_tokens = session.prompt_tokens() as u64;
        self.cached_tokens = session.cached_tokens() as u64;
        self.generated_tokens = session.generated_tokens() as u64;
        self.prompt_time = session.prompt_time();
        self.generate_time = session.generate_time();
        self.queue_time = session.queue_time();
        self.first_token_time = session.first_token_time().unwrap_or_default();
    }
}

type CountOf = fn(&Report) -> u64;
type TimeOf = fn(&Report) -> f64;

/// What kigo_inference_get_i64() knows.
pub(super) static COUNTS: &[Fact<CountOf>] = &[
    Fact {
        key: "prompt_tokens",
        doc: "Tokens of the prompt; in a further turn all that came before it are part of its prompt.",
        get: |report| report.prompt_tokens,
    },
    Fact {
        key: "cached_tokens",
        doc: "Tokens of the prompt that were not computed, since this or another inference had done so; 0 before the first \
              token.",
        get: |report| report.cached_tokens,
    },
    Fact {
        key: "processed_tokens",
        doc: "Tokens of the prompt that were computed or need not be, up to \"prompt_tokens\": while a call computes the prompt, \
              it grows with each step. The last step may still be under way on a GPU.",
        get: |report| (report.past.get() as u64).min(report.prompt_tokens),
    },
    Fact {
        key: "generated_tokens",
        doc: "Tokens generated so far in this turn, one that completes a stop string included.",
        get: |report| report.generated_tokens,
    },
    Fact {
        key: "text_size",
        doc: "After KIGO_BUFFER_TOO_SMALL: bytes that the buffer of the next call needs; 0 otherwise.",
        get: |report| report.text_size,
    },
];

/// What kigo_inference_get_f64() knows.
pub(super) static TIMES: &[Fact<TimeOf>] = &[
    Fact {
        key: "prompt_ms",
        doc: "Milliseconds spent on the prompt of this turn and the first token.",
        get: |report| report.prompt_time.as_secs_f64() * 1e3,
    },
    Fact {
        key: "generate_ms",
        doc: "Milliseconds spent on all tokens of this turn after the first.",
        get: |report| report.generate_time.as_secs_f64() * 1e3,
    },
    Fact {
        key: "first_token_ms",
        doc: "Milliseconds from the call that started the inference or this turn until its first token was there, whatever the \
              host did meanwhile; 0 before.",
        get: |report| report.first_token_time.as_secs_f64() * 1e3,
    },
    Fact {
        key: "queue_ms",
        doc: "Milliseconds that it waited for its turn while other inferences were computed; part of prompt_ms and \
              generate_ms.",
        get: |report| report.queue_time.as_secs_f64() * 1e3,
    },
    Fact {
        key: "tokens_per_second",
        doc: "Tokens after the first per second of generate_ms; 0 before there is one.",
        get: |report| {
            let seconds = report.generate_time.as_secs_f64();
            if seconds > 0.0 { report.generated_tokens.saturating_sub(1) as f64 / seconds } else { 0.0 }
        },
    },
];

/// Which of the two ways to read an inference its first call chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Text,
    Tokens,
}

impl Lane {
    fn function(self) -> &'static str {
        match self {
            Lane::Text => "kigo_next_text",
            Lane::Tokens => "kigo_next_token",
        }
    }

    /// What the function returns when the generation has ended.
    fn ended(self) -> i32 {
        match self {
            Lane::Text => 0,
            Lane::Tokens => Status::Finished as i32,
        }
    }
}

/// What a kigo_inference handle stands for.
pub(super) struct Generation {
    pub(super) cancel: Arc<AtomicBool>,
    /// How further turns are read.
    pub(super) format: PromptFormat,
    state: Mutex<State>,
    report: Mutex<Report>,
}

struct State {
    session: Session,
    lane: Option<Lane>,
    /// A defect that left the session in an unknown state; it is not touched again.
    defect: Option<Failure>,
}

impl Generation {
    /// Starts a session.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub(super) fn start(engine: &Arc<Engine>, prompt: Prompt, settings: &Settings) -> Result<Generation> {
        let settings = settings.clone().for_model(engine.sampling_defaults())?;
        let session = Session::start(engine, prompt, &settings.session)?;
        Ok(Self::of(session, settings.prompt_format, None))
    }

    /// Goes on from a file.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub(super) fn load(engine: &Arc<Engine>, path: &Path, settings: &Settings) -> Result<Generation> {
        let settings = settings.clone().for_model(engine.sampling_defaults())?;
        let session = Session::load(engine, path, &settings.session)?;
        Ok(Self::of(session, settings.prompt_format, None))
    }

    fn of(session: Session, format: PromptFormat, lane: Option<Lane>) -> Generation {
        let mut report = Report { past: session.past(), ..Report::default() };
        report.count(&session);
        Generation {
            cancel: session.cancel_flag(),
            format,
            report: Mutex::new(report),
            state: Mutex::new(State { session, lane, defect: None }),
        }
    }

    /// Branches off, unless a call is running.
    ///
    /// # Errors
    /// As [`Generation::read`] and [`Session::fork`].
    pub(super) fn fork(&self, settings: Option<Settings>) -> std::result::Result<Generation, Failure> {
        let session = self.read(|session| {
            let defaults = session.engine().sampling_defaults();
            let settings = settings.map(|settings| settings.for_model(defaults)).transpose()?;
            session.fork(settings.as_ref().map(|settings| &settings.session))
        })?;
        Ok(Self::of(session, self.format, None))
    }

    /// Changes where the session stands, unless a call is running, so that it goes on.
    pub(super) fn change(&self, change: impl FnOnce(&mut Session) -> Result<()>) -> Outcome {
        let mut state = self.enter()?;
        let session = &mut state.session;
        let outcome = caught(|| {
            change(session)?;
            let mut report = self.report();
            report.count(session);
            report.text_size = 0;
            report.finish_reason = RUNNING;
            Ok(0)
        });
        self.check_defect(&mut state, &outcome);
        outcome
    }

    /// A defect leaves the session in an unknown state, for ever.
    fn check_defect(&self, state: &mut State, outcome: &Outcome) {
        if let Err(failure) = outcome
            && failure.status == Status::Internal
        {
            state.defect = Some(failure.clone());
            let mut report = self.report();
            report.finish_reason = FAILED;
            report.last_failure = Some(failure.clone());
        }
    }

    /// The state after the last call that ended.
    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session, for one call.
    ///
    /// # Errors
    /// `Busy` while another runs; the defect that has ended the session.
    fn enter(&self) -> std::result::Result<MutexGuard<'_, State>, Failure> {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::WouldBlock) => return Err(Error::Busy.into()),
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
        };
        match &state.defect {
            Some(defect) => Err(defect.clone()),
            None => Ok(state),
        }
    }

    /// Reads from the session between calls that move it on.
    ///
    /// # Errors
    /// As [`Generation::enter`]; what `read` returns.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Session) -> Result<T>) -> std::result::Result<T, Failure> {
        Ok(read(&self.enter()?.session)?)
    }

    /// Remembers a failure that concerns the arguments of a call, not the session.
    pub(super) fn note(&self, error: Error) -> Failure {
        let failure = Failure::from(error);
        self.report().last_failure = Some(failure.clone());
        failure
    }

    /// Runs one call on the session, unless another is running, and publishes what came of it; a `call` that gives
    /// None says that the generation has ended.
    pub(super) fn advance(&self, lane: Lane, call: impl FnOnce(&mut Session) -> Result<Option<i32>>) -> Outcome {
        let mut state = self.enter()?;
        let first = *state.lane.get_or_insert(lane);
        if first != lane {
            let expected = format!("calls of {}() only, with which it was begun", first.function());
            return Err(self.note(Error::invalid_argument("inference", expected, format!("{}()", lane.function()))));
        }
        let session = &mut state.session;
        let outcome = caught(|| {
            // Text that was generated before the cancellation is not handed out after it.
            let cancelled = session.finish_reason().is_none() && self.cancel.load(Ordering::Acquire);
            let outcome = if cancelled { Err(Error::Cancelled) } else { call(session) };
            let outcome = outcome.map_err(Failure::from);
            self.publish(session, &outcome);
            outcome.map(|written| written.unwrap_or(lane.ended()))
        });
        self.check_defect(&mut state, &outcome);
        outcome
    }

    fn publish(&self, session: &Session, outcome: &std::result::Result<Option<i32>, Failure>) {
        let mut report = self.report();
        let was_running = report.finish_reason == RUNNING;
        report.count(session);
        report.text_size = 0;
        report.finish_reason = match outcome {
            Ok(Some(_)) => RUNNING,
            Ok(None) => session.finish_reason().map_or(FAILED, number),
            Err(failure) => match failure.status {
                Status::BufferTooSmall | Status::OutOfMemory => RUNNING,
                Status::Cancelled => number(FinishReason::Cancelled),
                Status::ContextFull => number(FinishReason::ContextFull),
                _ => FAILED,
            },
        };
        if let Err(failure) = outcome {
            report.text_size = failure.needed;
            report.last_failure = Some(failure.clone());
        }
        let ended = was_running && report.finish_reason != RUNNING && log::wanted(Level::Debug);
        let ended = ended.then(|| report.ended());
        drop(report);
        if let Some(text) = ended {
            log::tell(Level::Debug, || text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_reasons_are_those_of_the_header() {
        for (reason, name) in [
            (FinishReason::EndOfGeneration, "KIGO_FINISH_END_OF_GENERATION"),
            (FinishReason::StopString, "KIGO_FINISH_STOP_STRING"),
            (FinishReason::MaxTokens, "KIGO_FINISH_MAX_TOKENS"),
            (FinishReason::ContextFull, "KIGO_FINISH_CONTEXT_FULL"),
            (FinishReason::Cancelled, "KIGO_FINISH_CANCELLED"),
            (FinishReason::Grammar, "KIGO_FINISH_GRAMMAR"),
        ] {
            assert!(FINISH_REASONS.iter().any(|(known, value, _)| *known == name && *value == number(reason)));
        }
    }
}
