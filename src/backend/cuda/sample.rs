//! Sampling on the device: the states of sequences, the launches, and what came of them. `kernels/sample.cu` chooses the
//! tokens that [`Sampler`](crate::sampler::Sampler) would choose.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::Context;
use super::memory::{DeviceBuffer, PinnedBuffer, Purpose};
use super::module::{Function, Module, embedded};
use super::params::{
    KIGO_SAMPLE_CHUNK, KIGO_SAMPLE_FAILED, KIGO_SAMPLE_OUTCOMES, KIGO_SAMPLE_SLICE, KIGO_SAMPLE_SORTED, KigoSample,
    KigoSampleChunk, KigoSampleWork, KigoSampled, KigoSampler, bytes_of,
};
use super::stream::{Launch, Order, Stream};
use crate::error::try_vec;
use crate::sampler::{MAX_VOCAB, SamplingParams};
use crate::{Error, Result};

/// States are copied word by word.
const _: () = assert!(size_of::<KigoSampler>().is_multiple_of(4));
/// Chunks follow, each of which is a sector.
const _: () = assert!(size_of::<KigoSampleWork>().is_multiple_of(32) && size_of::<KigoSampleChunk>() == 32);

/// Threads of a block of each kernel.
const THREADS: u32 = 512;
/// Largest `top_k` that `sample_scan` serves, if there are twice as many chunks.
const MAX_SCANNED_TOP_K: u32 = 1024;
/// A token that comes soon is waited for without giving the processor away.
const SPIN: Duration = Duration::from_micros(20);
/// How often the device is asked whether the token can still come.
const ASK: Duration = Duration::from_millis(1);

/// The samplers of one model on one device. A slot is one sequence's.
pub struct Samplers {
    context: Arc<Context>,
    scan: Function,
    weigh: Function,
    gather: Function,
    /// [`KigoSampler`] of every slot.
    states: DeviceBuffer,
    /// What they are copied from.
    staging: PinnedBuffer,
    /// [`KigoSampled`] of every slot, `KIGO_SAMPLE_OUTCOMES` each.
    outcomes: PinnedBuffer,
    work: DeviceBuffer,
    work_bytes: usize,
    slots: Vec<Slot>,
    n_vocab: u32,
    n_ctx: usize,
    n_rows: u32,
}

/// What the host knows of a slot.
#[derive(Default)]
struct Slot {
    /// The latest tokens, while the penalty is on.
    window: Option<DeviceBuffer>,
    /// Number of the latest outcome that was read.
    serial: u32,
    weigh: bool,
    /// Whether its state may still be on its way to the device.
    staged: bool,
}

/// Bytes with which one row is sampled.
fn work_bytes(n_vocab: usize) -> usize {
    let n_chunks = n_vocab.div_ceil(KIGO_SAMPLE_CHUNK as usize);
    size_of::<KigoSampleWork>() + n_chunks * size_of::<KigoSampleChunk>()
}

/// What [`Samplers::new`] allocates on the device.
pub fn device_bytes(n_vocab: usize, n_slots: usize, n_rows: usize) -> u64 {
    let product = |n: usize, bytes: usize| (n as u64).saturating_mul(bytes as u64);
    product(n_slots, size_of::<KigoSampler>()).saturating_add(product(n_rows, work_bytes(n_vocab)))
}

impl Samplers {
    /// Samplers for `n_slots` sequences of up to `n_ctx` tokens, up to `n_rows` of which are sampled at once.
    ///
    /// # Errors
    /// `Internal` when a vocabulary has no token or more than 2^23, `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn new(stream: &Stream, n_vocab: usize, n_ctx: usize, n_slots: usize, n_rows: usize) -> Result<Samplers> {
        if !(1..=MAX_VOCAB).contains(&n_vocab) {
            return Err(Error::Internal(format!("expected 1 to {MAX_VOCAB} logits, found {n_vocab}")));
        }
        let context = stream.context();
        let module = Module::load(context, embedded("sample")?)?;
        let what = "the samplers";
        let product = |a: usize, b: usize| {
            a.checked_mul(b).ok_or_else(|| Error::Internal(format!("{what}: {a} times {b} bytes")))
        };
        let work_bytes = work_bytes(n_vocab);
        let outcomes = product(n_slots, KIGO_SAMPLE_OUTCOMES as usize * size_of::<KigoSampled>())?;
        let states = product(n_slots, size_of::<KigoSampler>())?;
        let mut slots = try_vec(n_slots, what)?;
        slots.resize_with(n_slots, Slot::default);
        let samplers = Samplers {
            context: context.clone(),
            scan: module.function("sample_scan")?,
            weigh: module.function("sample_weigh")?,
            gather: module.function("sample_gather")?,
            states: DeviceBuffer::new(context, Purpose::Workspace, states, what)?,
            staging: PinnedBuffer::new(context, states, what)?,
            outcomes: PinnedBuffer::new(context, outcomes, what)?,
            work: DeviceBuffer::new(context, Purpose::Workspace, product(n_rows, work_bytes)?, what)?,
            work_bytes,
            slots,
            n_vocab: n_vocab as u32,
            n_ctx,
            n_rows: u32::try_from(n_rows).unwrap_or(u32::MAX),
        };
        samplers.work.fill_u8(stream, 0)?;
        stream.synchronize()?;
        Ok(samplers)
    }

    /// Gives `slot` to a sequence that has `tokens` and has drawn `drawn` times, after the work of `stream`, which must be all
    /// that concerns the slot; outcomes of it that were not read are forgotten. It waits where the slot has a window.
    ///
    /// # Errors
    /// Those of [`SamplingParams::validate`]; `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn start(
        &mut self,
        stream: &Stream,
        slot: u32,
        params: &SamplingParams,
        drawn: u64,
        tokens: &[u32],
    ) -> Result<()> {
        params.validate()?;
        let mut state = state(params, self.n_vocab, self.n_ctx, drawn, tokens.len());
        let what = "the window of the repetition penalty";
        let bytes = state.window_len as usize * size_of::<u32>();
        let entry = self.slots.get_mut(slot as usize).ok_or_else(|| no_slot(slot))?;
        if entry.staged || entry.window.is_some() || bytes > 0 {
            stream.synchronize()?;
        }
        if entry.window.as_ref().map_or(0, DeviceBuffer::len) != bytes {
            entry.window = None;
            if bytes > 0 {
                entry.window = Some(DeviceBuffer::new(&self.context, Purpose::Workspace, bytes, what)?);
            }
        }
        if let Some(window) = &entry.window {
            state.window = window.address();
            window.upload(stream, 0, &window_of(tokens, state.window_len as usize, what)?)?;
        }
        // Beyond whatever the device may have numbered, so that no old outcome is taken for one that is waited for.
        entry.serial = entry.serial.wrapping_add(KIGO_SAMPLE_OUTCOMES);
        entry.weigh = state.weigh == 1;
        entry.staged = true;
        state.serial = entry.serial;
        let start = slot as usize * size_of::<KigoSampler>();
        for (i, word) in bytes_of(&state).as_chunks::<4>().0.iter().enumerate() {
            self.staging.write_u32(start + 4 * i, u32::from_ne_bytes(*word))?;
        }
        self.states.upload_async(stream, start, &self.staging, start..start + size_of::<KigoSampler>())
    }

    /// Frees what `slot` holds. No work that concerns it may be under way.
    pub fn free(&mut self, slot: u32) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            slot.window = None;
        }
    }

    /// Whether a launch that samples `slot` must have `weigh`.
    pub fn needs_weigh(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|slot| slot.weigh)
    }

    /// Queues the sampling of `n` rows from `logits`, f32 `[n][n_vocab]`. Row `row_of[i]` (u32; `i` where that is 0) of the
    /// `KigoRow`s at `rows` advances by its token; one without a slot is left alone. Up to `KIGO_SAMPLE_OUTCOMES - 1`
    /// launches may be ahead of [`Self::wait`]. All are addresses of the device, good while the work, or a graph of it, runs.
    ///
    /// # Errors
    /// `Internal` when there are too many rows, `DeviceLost`, `DeviceError`.
    pub fn launch(&self, stream: &Stream, logits: u64, rows: u64, row_of: u64, n: u32, weigh: bool) -> Result<()> {
        if !(1..=self.n_rows).contains(&n) {
            return Err(Error::Internal(format!("expected 1 to {} rows to sample, found {n}", self.n_rows)));
        }
        let params = KigoSample {
            logits,
            row_of,
            rows,
            samplers: self.states.address(),
            outcomes: self.outcomes.device_address(),
            work: self.work.address(),
            work_bytes: self.work_bytes as u64,
            n_vocab: self.n_vocab,
            pad: 0,
        };
        let n_slices = self.n_vocab.div_ceil(KIGO_SAMPLE_SLICE);
        let shape = |n_blocks| Launch {
            grid: [n_blocks, n, 1],
            block: [THREADS, 1, 1],
            shared_bytes: 0,
            order: Order::Dependent,
        };
        // Blocks of all rows run at the same time, where there are no more rows than multiprocessors.
        let most = (self.context.info().n_sm / n).max(1);
        stream.launch(&self.scan, shape(n_slices.min(most)), &params)?;
        if weigh {
            stream.launch(&self.weigh, shape(n_slices), &params)?;
            stream.launch(&self.gather, shape(n_slices), &params)?;
        }
        Ok(())
    }

    /// The next token of `slot`, for which it waits. `idle` says whether all work that may bring it is done, and returns
    /// an error when it failed; it is asked from time to time.
    ///
    /// # Errors
    /// [`Error::Numeric`] names the first logit that is not finite; the row has not advanced then. Those of `idle`;
    /// `Internal` when the work is done and has brought nothing.
    pub fn wait(&mut self, slot: u32, mut idle: impl FnMut() -> Result<bool>) -> Result<u32> {
        let started = Instant::now();
        let mut asked = started;
        loop {
            if let Some(outcome) = self.poll(slot)? {
                return outcome;
            }
            let now = Instant::now();
            if now - asked >= ASK {
                // What was queued before the question may have come meanwhile.
                if idle()? && !self.has_come(slot)? {
                    return Err(Error::Internal(format!("nothing was sampled for slot {slot}")));
                }
                asked = now;
            }
            if now - started < SPIN { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }

    /// The next outcome of `slot`, if it is there.
    fn poll(&mut self, slot: u32) -> Result<Option<Result<u32>>> {
        if !self.has_come(slot)? {
            return Ok(None);
        }
        let (serial, at) = self.next(slot)?;
        let value = self.outcomes.read_u64(at)? as u32;
        let outcome = if value & KIGO_SAMPLE_FAILED == 0 {
            Ok(value)
        } else {
            let found = self.outcomes.read_u64(at + std::mem::offset_of!(KigoSampled, found))?;
            if (found >> 32) as u32 != serial {
                return Ok(None);
            }
            let found = found as u32;
            let index = (value & !KIGO_SAMPLE_FAILED) as usize;
            Err(Error::Numeric { what: "logit of token", index, found: f32::from_bits(found) })
        };
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            (slot.serial, slot.staged) = (serial, false);
        }
        Ok(Some(outcome))
    }

    fn has_come(&self, slot: u32) -> Result<bool> {
        let (serial, at) = self.next(slot)?;
        Ok((self.outcomes.read_u64(at)? >> 32) as u32 == serial)
    }

    /// The number of the outcome that comes next, and where.
    fn next(&self, slot: u32) -> Result<(u32, usize)> {
        let serial = self.slots.get(slot as usize).ok_or_else(|| no_slot(slot))?.serial.wrapping_add(1);
        let place = slot as usize * KIGO_SAMPLE_OUTCOMES as usize + (serial % KIGO_SAMPLE_OUTCOMES) as usize;
        Ok((serial, place * size_of::<KigoSampled>()))
    }
}

fn no_slot(slot: u32) -> Error {
    Error::Internal(format!("there is no sampler {slot}"))
}

/// The state of a sequence, but for the address of its window and its serial.
pub fn state(params: &SamplingParams, n_vocab: u32, n_ctx: usize, drawn: u64, n_tokens: usize) -> KigoSampler {
    let window_len = if params.repeat_penalty == 1.0 { 0 } else { n_ctx.min(params.repeat_last_n as usize) as u32 };
    let most = MAX_SCANNED_TOP_K.min(n_vocab.div_ceil(KIGO_SAMPLE_CHUNK) / 2);
    let scan = params.temperature == 0.0 || n_vocab <= KIGO_SAMPLE_SORTED || (1..=most).contains(&params.top_k);
    KigoSampler {
        seed: params.seed,
        drawn,
        window: 0,
        ln_min_p: if params.min_p <= 0.0 { f64::NEG_INFINITY } else { f64::from(params.min_p).ln() },
        temperature: params.temperature,
        top_p: params.top_p,
        repeat_penalty: params.repeat_penalty,
        top_k: params.top_k,
        window_len,
        n_tokens: n_tokens as u32,
        serial: 0,
        weigh: u32::from(!scan),
    }
}

/// The last `len` of `tokens` as the device keeps them: token `i` at `i % len`.
fn window_of(tokens: &[u32], len: usize, what: &str) -> Result<Vec<u8>> {
    let mut bytes = try_vec(len * size_of::<u32>(), what)?;
    bytes.resize(len * size_of::<u32>(), 0);
    for (i, token) in tokens.iter().enumerate().skip(tokens.len().saturating_sub(len)) {
        let at = i % len * size_of::<u32>();
        bytes[at..at + size_of::<u32>()].copy_from_slice(&token.to_ne_bytes());
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_a_ring_of_the_latest_tokens() {
        let ring = |tokens: &[u32], len| -> Vec<u32> {
            let bytes = window_of(tokens, len, "").unwrap();
            bytes.chunks_exact(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect()
        };
        assert_eq!(ring(&[5, 6], 4), [5, 6, 0, 0]);
        assert_eq!(ring(&[1, 2, 3, 4, 5, 6], 4), [5, 6, 3, 4]);
        let d = SamplingParams::default;
        let len = |params: SamplingParams| state(&params, 100, 512, 0, 0).window_len;
        assert_eq!(len(d()), 0);
        assert_eq!(len(SamplingParams { repeat_penalty: 1.1, ..d() }), 64);
        assert_eq!(len(SamplingParams { repeat_penalty: 1.1, repeat_last_n: u32::MAX, ..d() }), 512);
        assert_eq!(len(SamplingParams { repeat_penalty: 1.1, repeat_last_n: 0, ..d() }), 0);
    }

    #[test]
    fn only_large_choices_are_weighed() {
        let weigh = |top_k, temperature, n_vocab| {
            state(&SamplingParams { top_k, temperature, ..SamplingParams::default() }, n_vocab, 512, 0, 0).weigh == 1
        };
        assert!(!weigh(40, 0.8, 128_256));
        assert!(!weigh(0, 0.0, 128_256));
        assert!(!weigh(0, 0.8, 2048));
        assert!(weigh(0, 0.8, 2049));
        assert!(!weigh(501, 0.8, 128_256));
        assert!(weigh(502, 0.8, 128_256));
        assert!(weigh(1025, 0.8, 1 << 23));
    }
}
