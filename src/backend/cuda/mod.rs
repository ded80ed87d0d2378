//! Runs a model on an NVIDIA GPU, through the driver that the machine has.
//!
//! What a kernel does to memory is as much part of this module as its Rust code: addresses in kernel parameters are
//! plain numbers, and no type keeps a kernel from writing where it must not. Buffers are freed only when the streams
//! that use them are idle; every owner of both sees to that.
//!
//! One stream does all work of a model in order. Batches of single rows, one for each of some sequences, are graphs
//! that are captured once for each power of two of rows: tokens, positions and page tables stand in device memory, so
//! a graph serves every position. While the same sequences run together, the device goes on to their next tokens before the
//! host has asked for them: see `ahead.rs`.
#![allow(unsafe_code, reason = "the driver is a C library; every use of it is proved in place")]

mod ahead;
pub mod attention;
pub mod blocks;
pub mod context;
mod create;
pub mod driver;
mod experts;
mod handed;
pub mod kv_cache;
pub mod layout;
pub mod load;
pub mod memory;
pub mod module;
mod pages;
pub mod params;
mod parts;
mod readers;
mod room;
pub mod sample;
mod stages;
mod step;
pub mod stream;
mod windows;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Backend, Draw, Memory, Row, SequenceId, Stop};
use crate::error::try_vec;
use crate::model::ModelDesc;
use crate::{Error, Result};
use ahead::Ahead;
use context::Context;
pub use create::{context_needs, weight_bytes};
use kv_cache::KvCache;
use layout::Places;
use memory::{DeviceBuffer, PinnedBuffer};
use params::{KIGO_NO_SLOT, KigoRow, KigoTile, bytes_of};
use parts::Parts;
use sample::Samplers;
use stages::{Kernels, Shape, Workspace};
use step::Step;
pub use step::StepRun;
use stream::{Graph, Stream};

/// Most rows of a graph; larger batches are launched kernel by kernel, which their kernels' time hides.
const MAX_GRAPH_ROWS: usize = 32;

/// Samplers in device memory. Sequences beyond so many draw on the host, from the same logits the same tokens.
const N_SLOTS: usize = 256;

/// Rows of logits that there is room for at first.
const FIRST_LOGITS: usize = 8;

/// Rows that are sampled at once.
const N_SAMPLED: usize = if MAX_GRAPH_ROWS > FIRST_LOGITS { MAX_GRAPH_ROWS } else { FIRST_LOGITS };

/// A model in device memory, with its KV cache.
pub struct CudaBackend {
    // Graphs go before what they use.
    graphs: HashMap<Recording, Graph>,
    /// The kernel that runs a step of one sequence, or of some, where it can.
    step: Option<Step>,
    device: String,
    desc: ModelDesc,
    n_ctx: usize,
    n_batch: usize,
    file_bytes: u64,
    weights: DeviceBuffer,
    places: Places,
    kernels: Kernels,
    cache: KvCache,
    samplers: Samplers,
    slots: Slots,
    work: Workspace,
    /// What rows are copied from.
    staging: PinnedBuffer,
    /// Whether `staging` may still be read by the device.
    staged: bool,
    shape: Shape,
    /// The rows of the last batch that wanted logits, with their places in the batch.
    wanted: Vec<(SequenceId, u32)>,
    host_logits: Vec<f32>,
    ahead: Ahead,
    prepare_time: Duration,
    stream: Arc<Stream>,
    context: Arc<Context>,
}

/// What a graph runs: so many single rows, kernel by kernel or as one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Batch {
    Rows(usize),
    Step(StepRun),
}

/// A batch, and whether its tokens are drawn at the end: `None` not, else whether some sampler needs a second kernel.
type Recording = (Batch, Option<bool>);

/// Which sampler is whose.
struct Slots {
    free: Vec<u32>,
    of: HashMap<SequenceId, Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    number: u32,
    /// Draws that the device's sampler has made, when the host has seen all of them; `None` before the first, and when
    /// the device has drawn what nobody asked for.
    drawn: Option<u64>,
}

impl CudaBackend {
    /// Most rows of a batch.
    pub fn n_batch(&self) -> usize {
        self.n_batch
    }

    /// How long it took to get ready when the weights were there.
    pub fn prepare_time(&self) -> Duration {
        self.prepare_time
    }

    /// Lets all warps of the kernel that runs a step sleep up to so many nanoseconds in every stage, which
    /// must change nothing. False where there is no such kernel. For tests.
    pub fn delay_steps(&mut self, nanoseconds: u32) -> bool {
        self.graphs.retain(|(batch, _), _| !matches!(batch, Batch::Step(_)));
        self.step.as_mut().is_some_and(|step| {
            step.set_delay(nanoseconds);
            true
        })
    }

    /// Lets the pages of a step of one sequence come through the rings of its kernel from this position on, where they can. For tests.
    pub fn stream_pages_from(&mut self, position: usize) {
        if let Some(step) = &mut self.step {
            step.set_streams_from(position);
        }
    }

    /// How so many sequences, none of them beyond this position, are run as one kernel, if they are. For tests.
    pub fn step_run(&self, n: usize, position: u32) -> Option<StepRun> {
        self.step.as_ref()?.run_of(n, position)
    }

    /// Writes rows, tiles and the selection of a batch to device memory. A batch that is run as a graph is padded to `n`.
    fn upload(&mut self, rows: &[Row], n: usize) -> Result<()> {
        if std::mem::replace(&mut self.staged, true) {
            self.stream.synchronize()?;
        }
        let scratch = self.cache.scratch_table_address();
        let (part, rest) = self.staging.as_mut_slice().split_at_mut(self.work.rows.len());
        let (tiles, select) = rest.split_at_mut(self.work.tiles.len());
        let row_chunks = part.chunks_exact_mut(size_of::<KigoRow>());
        for (i, to) in row_chunks.take(n).enumerate() {
            let row = match rows.get(i) {
                Some(row) => KigoRow {
                    token: row.token,
                    position: row.position,
                    pages: self.cache.table_address(row.sequence).unwrap_or(scratch),
                    slot: self.slots.of.get(&row.sequence).map_or(KIGO_NO_SLOT, |slot| slot.number),
                    pad: 0,
                },
                None => KigoRow { token: 0, position: 0, pages: scratch, slot: KIGO_NO_SLOT, pad: 0 },
            };
            to.copy_from_slice(bytes_of(&row));
        }
        let mut n_tiles = 0;
        for (tile, to) in tiles_of(rows).zip(tiles.chunks_exact_mut(size_of::<KigoTile>())) {
            to.copy_from_slice(bytes_of(&tile));
            n_tiles += 1;
        }
        // Of a graph, rows that only pad it select themselves: they have no sampler.
        let selected = self.wanted.iter().map(|&(_, row)| row).chain(rows.len() as u32..n as u32);
        let n_selected = self.wanted.len() + (n - rows.len());
        for (row, to) in selected.zip(select.chunks_exact_mut(4)) {
            to.copy_from_slice(&row.to_le_bytes());
        }
        let starts = [0, self.work.rows.len(), self.work.rows.len() + self.work.tiles.len()];
        let sizes = [n * size_of::<KigoRow>(), n_tiles * size_of::<KigoTile>(), n_selected * 4];
        for ((buffer, start), size) in
            [&self.work.rows, &self.work.tiles, &self.work.select].into_iter().zip(starts).zip(sizes)
        {
            buffer.upload_async(&self.stream, 0, &self.staging, start..start + size)?;
        }
        Ok(())
    }

    /// Uploads a batch and queues it.
    fn launch(&mut self, rows: &[Row], stop: Stop) -> Result<()> {
        let n = graph_rows(rows);
        self.upload(rows, n.unwrap_or(rows.len()))?;
        if n.is_none() {
            let stream = self.stream.clone();
            let parts = Parts::new(&stream, self.desc.n_layer(), stop.n_parts)?;
            return crate::model::forward(self, rows, &|layer| {
                parts.as_ref().map_or(Ok(()), |parts| parts.before(layer))?;
                stop.check()
            });
        }
        let longest = rows.iter().map(|row| row.position).max().unwrap_or(0);
        self.launch_graph((self.batch(rows.len(), longest), None))
    }

    /// Runs the batch in hand, which a step ahead has run, once more: others may have written its logits over already, or its samplers
    /// are not what the step drew with.
    fn repeat(&mut self) -> Result<()> {
        let rows = self.ahead.in_hand().to_vec();
        self.forget_ahead();
        self.launch(&rows, Stop::NEVER)
    }

    /// How so many single rows, none of them beyond this position, are run.
    fn batch(&self, n: usize, position: u32) -> Batch {
        self.step_run(n, position).map_or(Batch::Rows(n.next_power_of_two()), Batch::Step)
    }

    /// Captures a graph, unless it is there.
    fn capture(&mut self, recording: Recording) -> Result<()> {
        if self.graphs.contains_key(&recording) {
            return Ok(());
        }
        let (batch, weigh) = recording;
        let (Batch::Rows(n) | Batch::Step(StepRun { n_rows: n, .. })) = batch;
        self.shape = Shape { n, n_logits: n, all_want: true, ..Shape::default() };
        let stream = self.stream.clone();
        let graph = stream.capture(|stream| {
            match (batch, &self.step) {
                (Batch::Step(run), Some(step)) => {
                    stages::embed(self, step.number())?;
                    step.launch(stream, run, self.work.logits.address())?;
                }
                _ => crate::model::stages(self, &|_| Ok(()))?,
            }
            weigh.map_or(Ok(()), |weigh| self.launch_sampling(n, weigh))
        })?;
        self.graphs.try_reserve(1).map_err(|_| no_memory("a graph"))?;
        self.graphs.insert(recording, graph);
        Ok(())
    }

    /// Queues a graph, which is captured when it is first wanted.
    fn launch_graph(&mut self, recording: Recording) -> Result<()> {
        self.capture(recording)?;
        match self.graphs.get(&recording) {
            Some(graph) => graph.launch(&self.stream),
            None => Err(Error::Internal(format!("no graph of {recording:?}"))),
        }
    }

    /// Queues the drawing of tokens by the device's samplers, from the first `n` rows of logits.
    fn launch_sampling(&self, n: usize, weigh: bool) -> Result<()> {
        let (logits, rows, select) = (self.work.logits.address(), self.work.rows.address(), self.work.select.address());
        self.samplers.launch(&self.stream, logits, rows, select, n as u32, weigh)
    }

    /// Makes steps void that were started ahead.
    fn forget_ahead(&mut self) {
        for sequence in self.ahead.forget() {
            if let Some(slot) = self.slots.of.get_mut(&sequence) {
                slot.drawn = None;
            }
        }
    }

    /// Starts the steps that the device should have to run while the host waits. Whatever keeps it from that is no error of what
    /// was asked for.
    fn go_ahead(&mut self) -> Result<()> {
        while self.ahead.wants_step() {
            let (stream, cache, n_ctx) = (&self.stream, &mut self.cache, self.n_ctx);
            let reserved = self.ahead.next_step().try_for_each(|(sequence, position)| {
                if position >= n_ctx { Err(None) } else { cache.reserve(stream, sequence, position + 1).map_err(Some) }
            });
            match reserved {
                Err(Some(error)) if self.context.is_lost() => return Err(error),
                Err(_) => break,
                Ok(()) => {}
            }
            let longest = self.ahead.next_step().map(|(_, position)| position as u32).max().unwrap_or(0);
            let batch = self.batch(self.ahead.next_step().len(), longest);
            // A graph that is not there yet is made when somebody waits for it anyway. One that differs by the sampling at its
            // end is made here, while the device is busy.
            if !self.graphs.contains_key(&(batch, None)) {
                break;
            }
            let needs_weigh = |slot: &Slot| self.samplers.needs_weigh(slot.number);
            let weigh =
                self.ahead.next_step().any(|(sequence, _)| self.slots.of.get(&sequence).is_some_and(needs_weigh));
            if let Err(error) = self.capture((batch, Some(weigh))) {
                if self.context.is_lost() {
                    return Err(error);
                }
                break;
            }
            self.launch_graph((batch, Some(weigh)))?;
            self.ahead.started();
        }
        Ok(())
    }

    /// Draws with the device's samplers. All `draws` have a slot and there are few enough.
    fn sample_on_device(&mut self, draws: &mut [Draw]) -> Result<()> {
        let mut is_known = true;
        for draw in draws.iter() {
            is_known &= self.slot(draw.sequence)?.drawn == Some(draw.sampler.drawn());
        }
        if !is_known && !self.ahead.in_hand().is_empty() {
            self.repeat()?;
        }
        let mut weigh = false;
        for draw in draws.iter_mut() {
            let slot = self.slot(draw.sequence)?;
            if slot.drawn != Some(draw.sampler.drawn()) {
                let (params, drawn) = (draw.sampler.params().clone(), draw.sampler.drawn());
                self.samplers.start(&self.stream, slot.number, &params, drawn, draw.recent)?;
            }
            weigh |= self.samplers.needs_weigh(slot.number);
        }
        if self.ahead.in_hand().is_empty() {
            self.launch_sampling(self.wanted.len(), weigh)?;
        }
        if draws.len() == self.wanted.len() && self.ahead.goes_on() {
            self.go_ahead()?;
        }
        for draw in draws.iter_mut() {
            let slot = self.slot(draw.sequence)?;
            let stream = &self.stream;
            let outcome = self.samplers.wait(slot.number, || stream.is_idle());
            if outcome.is_ok() && draw.sampler.params().temperature > 0.0 {
                draw.sampler.set_drawn(draw.sampler.drawn() + 1);
            }
            if let Some(slot) = self.slots.of.get_mut(&draw.sequence) {
                slot.drawn = outcome.is_ok().then(|| draw.sampler.drawn());
            }
            self.ahead.drawn(draw.sequence, outcome.as_ref().ok().copied());
            draw.outcome = Some(outcome);
        }
        self.ahead.done();
        // What came from the device was queued after the copy of the rows.
        self.staged = false;
        Ok(())
    }

    /// Takes from a sequence what only one that goes on needs, when no work that uses it is under way any more.
    fn retire(&mut self, sequence: SequenceId) {
        if self.ahead.concerns(sequence) {
            self.forget_ahead();
        }
        if let Some(slot) = self.slots.of.remove(&sequence) {
            // Steps ahead may still use the sampler. A call that fails once is tried again; a lost device uses nothing.
            if self.stream.synchronize().is_err() {
                let _ = self.stream.synchronize();
            }
            self.samplers.free(slot.number);
            self.slots.free.push(slot.number);
        }
    }

    /// Gives the room of attention in parts back, which is made again where it is wanted again. False if there was none.
    fn release_partials(&mut self) -> bool {
        self.work.partials.is_some() && self.stream.synchronize().is_ok() && self.work.partials.take().is_some()
    }

    fn slot(&self, sequence: SequenceId) -> Result<Slot> {
        self.slots.of.get(&sequence).copied().ok_or_else(|| Error::Internal("a sequence without a sampler".into()))
    }

    fn forward_bound(&mut self, rows: &[Row], stop: Stop) -> Result<()> {
        self.wanted.clear();
        let wanted = rows.iter().enumerate().filter(|(_, row)| row.logits);
        self.wanted.extend(wanted.map(|(i, row)| (row.sequence, i as u32)));
        if self.ahead.takes(rows) {
            return Ok(());
        }
        self.forget_ahead();
        self.ahead.begin(rows);
        let n = graph_rows(rows).unwrap_or(rows.len());
        if self.work.ensure_logits(&self.stream, n.min(self.wanted.len().next_power_of_two()))? {
            self.graphs.clear();
        }
        self.launch(rows, stop)
    }
}

impl Backend for CudaBackend {
    fn device(&self) -> &str {
        &self.device
    }

    fn weight_bytes(&self) -> u64 {
        self.file_bytes
    }

    fn memory(&self) -> Arc<dyn Memory> {
        self.context.clone()
    }

    fn sequence_reserve(&mut self, sequence: SequenceId, n_positions: usize) -> Result<()> {
        let context = self.context.clone();
        let _bound = context.bind()?;
        if !self.slots.of.contains_key(&sequence)
            && self.slots.of.try_reserve(1).is_ok()
            && let Some(number) = self.slots.free.pop()
        {
            self.slots.of.insert(sequence, Slot { number, drawn: None });
        }
        match self.cache.reserve(&self.stream, sequence, n_positions) {
            Err(error) if error.is_out_of_memory() && self.release_partials() => {
                self.cache.reserve(&self.stream, sequence, n_positions)
            }
            outcome => outcome,
        }
    }

    fn sequence_free(&mut self, sequence: SequenceId) {
        let context = self.context.clone();
        // A device that cannot be bound is lost, and the books are put straight all the same.
        let _bound = context.bind();
        self.retire(sequence);
        self.cache.free(&self.stream, sequence);
    }

    fn ready(&mut self) -> Result<bool> {
        if !self.staged {
            return Ok(false);
        }
        let context = self.context.clone();
        let _bound = context.bind()?;
        let waits = !self.stream.is_idle()?;
        self.stream.synchronize()?;
        self.staged = false;
        Ok(waits)
    }

    fn sequence_holds(&self, sequence: SequenceId, n_positions: usize) -> bool {
        self.cache.holds(sequence, n_positions)
    }

    fn sequence_rewind(&mut self, sequence: SequenceId, n_positions: usize) -> Result<bool> {
        let context = self.context.clone();
        let _bound = context.bind()?;
        if self.ahead.concerns(sequence) {
            self.forget_ahead();
        }
        // The device's sampler has seen tokens that are no more.
        if let Some(slot) = self.slots.of.get_mut(&sequence) {
            slot.drawn = None;
        }
        self.cache.rewind(&self.stream, sequence, n_positions)
    }

    fn sequence_fork(&mut self, from: SequenceId, to: SequenceId, n_positions: usize) -> Result<bool> {
        let context = self.context.clone();
        let _bound = context.bind()?;
        self.cache.fork(&self.stream, from, to, n_positions)
    }

    fn sequence_keep(&mut self, sequence: SequenceId) {
        let context = self.context.clone();
        let _bound = context.bind();
        self.retire(sequence);
        self.cache.keep(sequence);
        if !self.cache.is_used() {
            self.cache.shrink(&self.stream);
        }
    }

    fn kept_bytes(&self) -> u64 {
        self.cache.kept_bytes()
    }

    fn release_reserve(&mut self) {
        let context = self.context.clone();
        let _bound = context.bind();
        self.cache.shrink(&self.stream);
        self.release_partials();
    }

    fn page_positions(&self) -> usize {
        kv_cache::PAGE
    }

    fn cache_format(&self) -> String {
        format!("cuda, {}", self.cache.format(&self.desc))
    }

    fn page_bytes(&self, n_positions: usize, index: usize) -> Option<usize> {
        self.cache.page_bytes(n_positions, index)
    }

    fn page_read(&mut self, sequence: SequenceId, n_positions: usize, index: usize, bytes: &mut [u8]) -> Result<()> {
        let context = self.context.clone();
        let _bound = context.bind()?;
        let (buffer, offset) = self.cache.page(sequence, n_positions, index)?;
        buffer.download(&self.stream, offset, bytes)
    }

    fn sequence_restore(&mut self, sequence: SequenceId, n_positions: usize) -> Result<()> {
        let context = self.context.clone();
        let _bound = context.bind()?;
        self.cache.reserve(&self.stream, sequence, n_positions)
    }

    fn page_write(&mut self, sequence: SequenceId, n_positions: usize, index: usize, bytes: &[u8]) -> Result<()> {
        let context = self.context.clone();
        let _bound = context.bind()?;
        let (buffer, offset) = self.cache.page(sequence, n_positions, index)?;
        buffer.upload(&self.stream, offset, bytes)
    }

    fn forward_unless(&mut self, rows: &[Row], stop: Stop) -> Result<()> {
        let context = self.context.clone();
        let _bound = context.bind()?;
        self.forward_bound(rows, stop)
    }

    fn logits(&mut self, index: usize) -> Result<&[f32]> {
        let context = self.context.clone();
        let _bound = context.bind()?;
        if !self.ahead.in_hand().is_empty() {
            self.repeat()?;
        }
        let n_vocab = self.desc.n_vocab;
        if self.host_logits.len() != n_vocab {
            self.host_logits = try_vec(n_vocab, "the logits")?;
            self.host_logits.resize(n_vocab, 0.0);
        }
        self.work.download_logits(&self.stream, index, &mut self.host_logits)?;
        self.staged = false;
        Ok(&self.host_logits)
    }

    fn sample(&mut self, draws: &mut [Draw]) {
        let context = self.context.clone();
        let _bound = match context.bind() {
            Ok(bound) => bound,
            Err(error) => return fail(draws, error),
        };
        let knows = |draw: &Draw| draw.sampler.is_simple() && self.slots.of.contains_key(&draw.sequence);
        let on_device = self.wanted.len() <= MAX_GRAPH_ROWS && draws.iter().all(knows);
        if !on_device {
            for draw in draws {
                draw.outcome =
                    Some(self.logits(draw.index).and_then(|logits| draw.sampler.sample(logits, draw.recent)));
                // The device's sampler has not seen this token.
                if let Some(slot) = self.slots.of.get_mut(&draw.sequence) {
                    slot.drawn = None;
                }
            }
        } else if let Err(error) = self.sample_on_device(draws) {
            self.forget_ahead();
            // The device may have drawn already.
            for draw in draws.iter() {
                if let Some(slot) = self.slots.of.get_mut(&draw.sequence) {
                    slot.drawn = None;
                }
            }
            fail(draws, error);
        }
    }

    fn n_layer(&self) -> usize {
        self.desc.n_layer()
    }

    fn begin(&mut self, rows: &[Row]) -> Result<()> {
        let n_tiles = if is_decode(rows) { 0 } else { tiles_of(rows).count() };
        let n_logits = rows.iter().filter(|row| row.logits).count();
        let n_positions = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(0);
        let first_position = rows.iter().map(|row| row.position as usize).min().unwrap_or(0);
        let all_want = n_logits == rows.len();
        self.shape = Shape { n: rows.len(), n_logits, n_tiles, n_positions, first_position, all_want };
        attention::make_room(self);
        Ok(())
    }

    fn embed(&mut self) -> Result<()> {
        stages::embed(self, 0)
    }

    fn attn_qkv(&mut self, layer: usize) -> Result<()> {
        stages::attn_qkv(self, layer)
    }

    fn attn_mix(&mut self, layer: usize) -> Result<()> {
        attention::attn_mix(self, layer)
    }

    fn attn_output(&mut self, layer: usize) -> Result<()> {
        stages::attn_output(self, layer)
    }

    fn ffn_up(&mut self, layer: usize) -> Result<()> {
        stages::ffn_up(self, layer)
    }

    fn ffn_down(&mut self, layer: usize) -> Result<()> {
        stages::ffn_down(self, layer)
    }

    fn output(&mut self) -> Result<()> {
        stages::output(self)
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Nothing may use the buffers when they are freed; a lost device does not.
        if self.stream.synchronize().is_err() {
            let _ = self.stream.synchronize();
        }
    }
}

/// Gives every draw that has no outcome this one.
fn fail(draws: &mut [Draw], error: Error) {
    let mut first = Some(error);
    for draw in draws.iter_mut().filter(|draw| draw.outcome.is_none()) {
        let error = first.take().unwrap_or_else(|| Error::Internal("the batch was not sampled".into()));
        draw.outcome = Some(Err(error));
    }
}

/// Whether every row is of another sequence.
fn is_decode(rows: &[Row]) -> bool {
    // Rows of one sequence are neighbours.
    rows.windows(2).all(|pair| pair[0].sequence != pair[1].sequence)
}

/// How many rows the graph of this batch has; `None` when there is no graph for it.
fn graph_rows(rows: &[Row]) -> Option<usize> {
    let fits = rows.len() <= MAX_GRAPH_ROWS && is_decode(rows) && rows.iter().all(|row| row.logits);
    fits.then(|| rows.len().next_power_of_two())
}

/// Runs of up to 64 rows of one sequence.
fn tiles_of(rows: &[Row]) -> impl Iterator<Item = KigoTile> + '_ {
    let mut first = 0;
    std::iter::from_fn(move || {
        let sequence = rows.get(first)?.sequence;
        let n_rows = rows[first..].iter().take(64).take_while(|row| row.sequence == sequence).count();
        let tile = KigoTile { first_row: first as u32, n_rows: n_rows as u32 };
        first += n_rows;
        Some(tile)
    })
}

fn no_memory(what: &str) -> Error {
    Error::OutOfMemory { what: what.to_string(), bytes: 0 }
}
