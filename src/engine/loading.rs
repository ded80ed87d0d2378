//! A load that runs on a thread of its own, so that the caller can watch and cancel it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Engine, LoadOptions, lock};
use crate::backend::Progress;
use crate::{Error, Result, panics};

/// A load that was started. Any thread may use it; dropping it cancels the load and does not wait for its end.
pub struct Loading {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    progress: Progress,
    state: Mutex<State>,
    ended: Condvar,
}

enum State {
    Running,
    Ended(Result<Arc<Engine>>),
    /// Somebody has taken the outcome.
    Taken,
}

impl Loading {
    /// Starts [`Engine::load`].
    ///
    /// # Errors
    /// When no thread can be started. Whatever else goes wrong is what [`Self::finish`] returns.
    pub fn start(path: &Path, options: &LoadOptions) -> Result<Loading> {
        let state = Mutex::new(State::Running);
        let shared = Arc::new(Shared { progress: Progress::default(), state, ended: Condvar::new() });
        let (theirs, path, options): (_, PathBuf, _) = (shared.clone(), path.into(), options.clone());
        let body = move || {
            panics::own_thread();
            let load = || Engine::load_watched(&path, &options, &theirs.progress);
            let outcome = panics::caught(load).unwrap_or_else(|text| Err(Error::Internal(text)));
            *lock(&theirs.state) = State::Ended(outcome);
            theirs.ended.notify_all();
        };
        let thread = std::thread::Builder::new().name("kigo-load".into()).spawn(body);
        let thread = thread.map_err(|_| Error::OutOfMemory { what: "a thread that loads".into(), bytes: 2 << 20 })?;
        Ok(Loading { shared, thread: Mutex::new(Some(thread)) })
    }

    /// How far it is; see [`Progress::bytes`].
    pub fn bytes(&self) -> (u64, u64) {
        self.shared.progress.bytes()
    }

    /// Whether [`Self::finish`] would wait.
    pub fn is_running(&self) -> bool {
        matches!(*lock(&self.shared.state), State::Running)
    }

    /// Ends the load soon, with [`Error::LoadCancelled`] unless it has ended before.
    pub fn cancel(&self) {
        self.shared.progress.cancel();
    }

    /// [`Self::finish`], which meanwhile tells [`Self::bytes`] every `interval`, and once more when all has been read; the
    /// load is cancelled when `tell` returns false.
    ///
    /// # Errors
    /// Those of [`Engine::load`]; [`Error::LoadCancelled`] always when `tell` returned false.
    pub fn finish_telling(
        &self,
        interval: Duration,
        mut tell: impl FnMut(u64, u64) -> bool,
    ) -> Option<Result<Arc<Engine>>> {
        let mut tell = || {
            let (done, total) = self.bytes();
            tell(done, total)
        };
        let mut wanted = true;
        while self.is_running() {
            wanted = wanted && tell();
            if !wanted {
                self.cancel();
                break;
            }
            let running = |state: &mut State| matches!(state, State::Running);
            let state = lock(&self.shared.state);
            drop(
                self.shared.ended.wait_timeout_while(state, interval, running).unwrap_or_else(PoisonError::into_inner),
            );
        }
        let outcome = self.finish()?;
        Some(outcome.and_then(|engine| if wanted && tell() { Ok(engine) } else { Err(Error::LoadCancelled) }))
    }

    /// Waits for the end and gives the outcome, to the first who asks; `None` to later ones.
    pub fn finish(&self) -> Option<Result<Arc<Engine>>> {
        let state = lock(&self.shared.state);
        let running = |state: &mut State| matches!(state, State::Running);
        let mut state = self.shared.ended.wait_while(state, running).unwrap_or_else(PoisonError::into_inner);
        let outcome = std::mem::replace(&mut *state, State::Taken);
        drop(state);
        // The thread has nothing left to do; after this it is gone.
        let thread = lock(&self.thread).take();
        thread.map(JoinHandle::join);
        match outcome {
            State::Ended(outcome) => Some(outcome),
            State::Running | State::Taken => None,
        }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.cancel();
    }
}
