//! What sessions do with their sequences besides running rows: begin with what is known, go back, branch off, end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::batches::{Request, contained};
use super::{Engine, lock};
use crate::backend::{Backend, SequenceId};
use crate::{Error, Result};

/// A sequence whose session has ended, with the tokens that it has in the cache.
pub struct Retired {
    pub sequence: SequenceId,
    pub tokens: Vec<u32>,
}

impl Engine {
    /// Names a new, empty sequence.
    pub fn sequence_new(&self) -> SequenceId {
        self.next_sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends a sequence that has `tokens` in the cache. At once, or as soon as the running batch is done, its memory is freed or
    /// becomes part of the prompt cache.
    pub fn sequence_end(&self, sequence: SequenceId, tokens: Vec<u32>) {
        lock(&self.retired).push(Retired { sequence, tokens });
        self.free_retired();
    }

    /// Ends a sequence that is of no use to others.
    pub fn sequence_free(&self, sequence: SequenceId) {
        self.sequence_end(sequence, Vec::new());
    }

    /// Makes an empty sequence begin with as many of `tokens` as the prompt cache has, and says how many; never all.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `cancel` was set before it had its turn; nothing changed then.
    pub fn sequence_begin(&self, sequence: SequenceId, tokens: &[u32], cancel: &Arc<AtomicBool>) -> Result<usize> {
        if !lock(&self.prompts).may_know(tokens) {
            return Ok(0);
        }
        let mut own = crate::error::try_vec(tokens.len(), "the prompt")?;
        own.extend_from_slice(tokens);
        let prompts = self.prompts.clone();
        self.call(cancel, move |backend| Ok(lock(&prompts).begin(backend, sequence, &own)))
    }

    /// Lets other sequences begin with `tokens`, which this one has in the cache.
    pub fn sequence_share(&self, sequence: SequenceId, tokens: &[u32]) {
        lock(&self.prompts).share(sequence, tokens);
    }

    /// Takes away the positions of a sequence from `n` on. False if the cache has not kept what comes then: layers with a
    /// window forget; the sequence is empty then.
    ///
    /// # Errors
    /// Those of [`Backend::sequence_rewind`]; the sequence is as before.
    pub fn sequence_rewind(&self, sequence: SequenceId, n: usize) -> Result<bool> {
        lock(&self.prompts).unshare(sequence);
        self.call(&Arc::default(), move |backend| {
            let rewound = n > 0 && backend.sequence_rewind(sequence, n)?;
            if !rewound {
                backend.sequence_free(sequence);
            }
            Ok(rewound)
        })
    }

    /// A new sequence with the first `n` positions of another, and whether it has them: if not, it is empty.
    ///
    /// # Errors
    /// Those of [`Backend::sequence_fork`].
    pub fn sequence_fork(&self, from: SequenceId, n: usize) -> Result<(SequenceId, bool)> {
        let to = self.sequence_new();
        if n == 0 {
            return Ok((to, false));
        }
        let forked = self.call(&Arc::default(), move |backend| backend.sequence_fork(from, to, n))?;
        Ok((to, forked))
    }

    /// Bytes of the `index`-th page that a row at position `n` sees of those before it; `None` if there are not so many.
    ///
    /// # Errors
    /// [`Error::Internal`] for a panic of the backend.
    pub fn page_bytes(&self, n: usize, index: usize) -> Result<Option<usize>> {
        self.call(&Arc::default(), move |backend| Ok(backend.page_bytes(n, index)))
    }

    /// Bytes of all these pages.
    ///
    /// # Errors
    /// As [`Engine::page_bytes`].
    pub fn pages_bytes(&self, n: usize) -> Result<u64> {
        self.call(&Arc::default(), move |backend| Ok(super::prompts::pages_bytes(backend, n)))
    }

    /// That page of a sequence.
    ///
    /// # Errors
    /// Those of [`Backend::page_read`].
    pub fn page_read(&self, sequence: SequenceId, n: usize, index: usize) -> Result<Option<Vec<u8>>> {
        self.call(&Arc::default(), move |backend| {
            let Some(bytes) = backend.page_bytes(n, index) else { return Ok(None) };
            let mut page = crate::error::try_vec(bytes, "a page of the cache")?;
            page.resize(bytes, 0);
            backend.page_read(sequence, n, index, &mut page)?;
            Ok(Some(page))
        })
    }

    /// Makes a sequence of `n` positions whose pages are to be written.
    ///
    /// # Errors
    /// Those of [`Backend::sequence_restore`].
    pub fn sequence_restore(&self, sequence: SequenceId, n: usize) -> Result<()> {
        self.call(&Arc::default(), move |backend| backend.sequence_restore(sequence, n))
    }

    /// Writes that page of a sequence.
    ///
    /// # Errors
    /// Those of [`Backend::page_write`].
    pub fn page_write(&self, sequence: SequenceId, n: usize, index: usize, page: Vec<u8>) -> Result<()> {
        self.call(&Arc::default(), move |backend| backend.page_write(sequence, n, index, &page))
    }

    /// Frees what ended sequences have left for others.
    ///
    /// # Errors
    /// [`Error::Internal`] for a panic of the backend.
    pub fn clear_prompt_cache(&self) -> Result<()> {
        let prompts = self.prompts.clone();
        self.call(&Arc::default(), move |backend| {
            lock(&prompts).clear(backend);
            Ok(())
        })
    }

    /// Bytes of the pages that ended sequences have left for others.
    pub fn prompt_cache_bytes(&self) -> u64 {
        lock(&self.prompts).kept_bytes()
    }

    /// Has `body` done with the backend, between two batches, when its turn comes.
    ///
    /// # Errors
    /// Those of `body`, its panics as [`Error::Internal`]; [`Error::Cancelled`] when `cancel` was set before its turn.
    pub(super) fn call<T: Send + 'static>(
        &self,
        cancel: &Arc<AtomicBool>,
        mut body: impl FnMut(&mut dyn Backend) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let outcome = Arc::new(Mutex::new(None));
        let place = outcome.clone();
        let task = Box::new(move |backend: &mut dyn Backend| {
            *lock(&place) = Some(body(backend)?);
            Ok(())
        });
        self.wait(&Request::task(task, cancel))?;
        lock(&outcome).take().ok_or_else(|| Error::Internal("the task was not done".into()))
    }

    /// Does something that takes memory, again and again as long as there is none and a kept sequence can be freed.
    pub(super) fn with_room(
        &self,
        backend: &mut dyn Backend,
        mut body: impl FnMut(&mut dyn Backend) -> Result<()>,
    ) -> Result<()> {
        loop {
            match contained(|| body(backend)) {
                Err(error) if error.is_out_of_memory() && lock(&self.prompts).evict(backend) => {
                    backend.release_reserve();
                }
                outcome => return outcome,
            }
        }
    }
}
