//! How much runs in a step: little enough that nobody waits long for its end, who cancels or has rows of his own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Result;
use crate::backend::Device;
use crate::error::try_vec;
use crate::gguf::TensorInfo;
use crate::model::{LayerDesc, ModelDesc, Weights};

/// The least that [`default_n_batch`] gives.
pub const LEAST_N_BATCH: usize = 128;

/// The most that it gives: larger batches gain little on a GPU (`kernels/notes.md`).
const MOST_N_BATCH: usize = 2048;

/// Multiply-adds of a step at the start of a prompt: an H200 takes about 60 ms for them, an H100 70.
const FIRST_STEP: f64 = 15e12;

/// The same of any step, whatever came before it, until it is known how fast the device is.
const LONGEST_STEP: f64 = FIRST_STEP * 4.0 / 3.0;

/// How long that should take, on any GPU: who comes meanwhile waits for it, and who cancels in company.
const LONGEST_TIME: Duration = Duration::from_millis(80);

/// Multiply-adds of products that take as long as one of attention, at most: 1.3 to 1.5 (8B, heads of 128) and 1.7 (1B, heads of 64)
/// by the prompts of 8,192 and 32,768 tokens in docs/benchmarks.md, as a test prints; less where products are slow.
const ATTENTION_COST: f64 = 1.75;

/// In how many parts a GPU gets the layers of the longest step: who cancels waits for two of them.
const LONGEST_PARTS: f64 = 16.0;

/// Steps have no fewer rows of a prompt than this, however long the context: the weights are read for each step.
pub const FEWEST_ROWS: usize = 64;

/// Most rows of a batch unless somebody wants others.
pub fn default_n_batch(device: Device, desc: &ModelDesc, plan: &Weights<TensorInfo>) -> usize {
    match device {
        Device::Cuda(_) => gpu_n_batch(plan.layer_weights(desc)),
        Device::Cpu | Device::Auto => LEAST_N_BATCH,
    }
}

/// Of a model that multiplies a token with so many weights.
fn gpu_n_batch(n_weights: u64) -> usize {
    let rows = (FIRST_STEP / n_weights.max(1) as f64) as usize;
    (rows / LEAST_N_BATCH * LEAST_N_BATCH).clamp(LEAST_N_BATCH, MOST_N_BATCH)
}

/// What steps of a model cost, and how large they may be.
pub struct Steps {
    n_batch: usize,
    /// Multiply-adds of a row in the matrices of the layers.
    weights: f64,
    /// Windows of layers, and what a position in them costs a row in all layers of that window.
    windows: Vec<(usize, f64)>,
    /// Most that a step may cost on a fast device, and how long it should take there.
    nominal: f64,
    longest: Duration,
    /// Most that it may cost on this one: the bits of an f64.
    most: AtomicU64,
}

impl Steps {
    /// For batches of up to `n_batch` rows of a model that multiplies a row with `n_weights` weights, and has `n_embd_q` elements of
    /// q in each of its layers. On a GPU steps get fewer rows where the context is long, and where the GPU is slow; where somebody
    /// wants larger ones than usual, none should take longer than the first.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(
        device: Device,
        (n_weights, n_embd_q): (u64, usize),
        layers: &[LayerDesc],
        n_batch: usize,
    ) -> Result<Steps> {
        let mut windows: Vec<(usize, f64)> = try_vec(layers.len(), "the windows of the layers")?;
        let cost = 2.0 * n_embd_q as f64 * ATTENTION_COST;
        for layer in layers {
            let window = layer.window.unwrap_or(usize::MAX);
            match windows.iter_mut().find(|(known, _)| *known == window) {
                Some((_, sum)) => *sum += cost,
                None => windows.push((window, cost)),
            }
        }
        let (nominal, longest) = (f64::INFINITY, LONGEST_TIME);
        let mut steps =
            Steps { n_batch, weights: n_weights as f64, windows, nominal, longest, most: AtomicU64::default() };
        if let Device::Cuda(_) = device {
            steps.nominal = LONGEST_STEP.max(steps.cost(0, n_batch));
            steps.longest = LONGEST_TIME.mul_f64(steps.nominal / LONGEST_STEP);
        }
        steps.set_most(steps.nominal);
        Ok(steps)
    }

    fn most(&self) -> f64 {
        f64::from_bits(self.most.load(Ordering::Relaxed))
    }

    fn set_most(&self, most: f64) {
        self.most.store(most.to_bits(), Ordering::Relaxed);
    }

    /// Notes how long a step took, so that the next ones are shorter if that was too long, and longer again where they may be.
    pub fn took(&self, cost: f64, time: Duration) {
        let (most, part) = (self.most(), time.as_secs_f64() / self.longest.as_secs_f64());
        if part > 1.0 {
            self.set_most(cost / part);
        } else if part * most < 0.8 * cost {
            self.set_most((most * 1.25).min(self.nominal));
        }
    }

    /// Most rows of a step.
    pub fn n_batch(&self) -> usize {
        self.n_batch
    }

    /// What `n` rows of a sequence cost from position `start` on.
    pub fn cost(&self, start: usize, n: usize) -> f64 {
        let seen = start + n / 2;
        let attention = self.windows.iter().map(|&(window, cost)| seen.min(window) as f64 * cost);
        (self.weights + attention.sum::<f64>()) * n as f64
    }

    /// Whether a step of `n` rows that costs so much is no larger than it may be.
    pub fn allow(&self, n: usize, cost: f64) -> bool {
        n <= self.n_batch && cost <= self.most()
    }

    /// In how many parts a device should get a step that costs so much.
    pub fn parts(&self, cost: f64) -> usize {
        (cost / self.most() * LONGEST_PARTS) as usize
    }

    /// Rows of a prompt from position `start` on that run at once, where `share` prompts may want to run together: `n_batch`, or
    /// half of it, or half of that.
    pub fn rows(&self, start: usize, share: usize) -> usize {
        let mut n = self.n_batch.div_ceil(share);
        while n > FEWEST_ROWS && self.cost(start, n) * share as f64 > self.most() {
            n = n.div_ceil(2);
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Device = Device::Cuda(0);
    const LLAMA_8B: Model = (6_979_321_856, 4096, 32, 0);

    /// Multiply-adds of a row in the matrices; elements of q; layers; how many of these have a window of 128.
    type Model = (u64, usize, usize, usize);

    fn steps(device: Device, (n_weights, n_embd_q, n_layer, n_windows): Model, n_batch: usize) -> Steps {
        let layer = |i| LayerDesc { window: (i < n_windows).then_some(128), rope: None };
        let layers: Vec<LayerDesc> = (0..n_layer).map(layer).collect();
        Steps::new(device, (n_weights, n_embd_q), &layers, n_batch).unwrap()
    }

    #[test]
    fn batches_on_a_gpu_take_about_as_long() {
        let sizes = [106_000_000, 6_980_000_000, 68_000_000_000, 400_000_000_000].map(gpu_n_batch);
        assert_eq!(sizes, [2048, 2048, 128, 128]);
    }

    #[test]
    fn steps_get_shorter_where_the_context_is_long() {
        let on_gpu = steps(GPU, LLAMA_8B, 2048);
        let rows = |share| [0, 4096, 8192, 32_768, 131_072, 1 << 30].map(|start| on_gpu.rows(start, share));
        assert_eq!(rows(1), [2048, 2048, 1024, 512, 256, 64]);
        assert_eq!(rows(4), [512, 512, 256, 128, 64, 64], "four of them make a step");
        let on_cpu = steps(Device::Cpu, LLAMA_8B, 128);
        assert_eq!([0, 1 << 30].map(|start| on_cpu.rows(start, 1)), [128, 128]);
    }

    #[test]
    fn larger_steps_than_usual_stay_as_long_as_the_first() {
        let steps = steps(GPU, LLAMA_8B, 8192);
        assert_eq!([0, 8192, 32_768].map(|start| steps.rows(start, 1)), [8192, 4096, 2048]);
        assert!(steps.allow(8192, steps.cost(0, 8192)) && !steps.allow(8193, 0.0));
    }

    /// A GPU of a fifth of the speed, which gets faster.
    #[test]
    fn steps_are_shorter_on_a_slow_gpu() {
        let steps = steps(GPU, LLAMA_8B, 2048);
        let take = |rate: f64| {
            let n = steps.rows(0, 1);
            let seconds = steps.cost(0, n) / rate;
            steps.took(steps.cost(0, n), Duration::from_secs_f64(seconds));
            (n, seconds)
        };
        assert!(matches!(take(50e12), (2048, 0.3..0.32)));
        for _ in 0..9 {
            assert!(matches!(take(50e12), (512, 0.07..0.08)), "found from the first");
        }
        let mut later: Vec<usize> = (0..20).map(|_| take(250e12).0).collect();
        later.dedup();
        assert_eq!(later, [512, 1024, 2048]);
    }

    #[test]
    fn larger_steps_than_usual_may_take_longer() {
        let steps = steps(GPU, LLAMA_8B, 8192);
        steps.took(steps.cost(0, 8192), Duration::from_millis(220));
        assert_eq!(steps.rows(0, 1), 8192);
        steps.took(steps.cost(0, 8192), Duration::from_millis(500));
        assert_eq!(steps.rows(0, 1), 4096);
    }

    #[test]
    fn a_step_of_several_is_no_larger() {
        let steps = steps(GPU, LLAMA_8B, 2048);
        let deep = |n: usize| steps.allow(n * 128, steps.cost(32_768, 128) * n as f64);
        assert!(deep(4) && !deep(16), "16 parts of 128 rows have not more than 2,048 rows, but are deep");
    }

    /// Tokens per second of whole prompts of 8,192 and 32,768 tokens, by GPU.
    fn measured(file: &str) -> Vec<[f64; 2]> {
        let tables = include_str!("../../docs/benchmarks.md").split("\nPrefill of prompts").skip(1);
        let rows = tables.filter_map(|table| {
            let mut lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
            let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
            let heads = cells(lines.next()?);
            let row = lines.map(cells).find(|row| row[1] == file)?;
            let column = |head: &str| {
                let at = heads.iter().position(|known| known == head)?;
                row[at].split(';').next()?.replace(',', "").parse().ok()
            };
            Some([column("8,192")?, column("32,768")?])
        });
        rows.collect()
    }

    /// A prompt of n tokens takes `a n + b n^2 / 2`, so a row `a + b position`.
    #[test]
    fn no_step_takes_100_ms_by_what_was_measured() {
        let models: [(&str, Model); 7] = [
            ("qwen2-0.5b-f16", (357_826_560, 896, 24, 0)),
            ("llama-1b-f16", (973_078_528, 2048, 16, 0)),
            ("llama-8b-f16", LLAMA_8B),
            ("llama-8b-q8_0", LLAMA_8B),
            ("llama-8b-q4_k_m", LLAMA_8B),
            ("gpt-oss-20b-mxfp4", (3_027_763_200, 4096, 24, 12)),
            ("qwen3-30b-a3b-q4_k_m", (2_730_491_904, 4096, 48, 0)),
        ];
        for (file, model) in models {
            let found = measured(file);
            assert_eq!(found.len(), 2, "{file} on an H100 and an H200");
            for [short, long] in found {
                let (of_8k, of_32k) = (8192.0 / short, 32_768.0 / long);
                let b = (of_32k - 4.0 * of_8k) * 2.0 / (32_768.0 * 32_768.0 - 4.0 * 8192.0 * 8192.0);
                let a = of_8k / 8192.0 - b * 4096.0;
                let steps = steps(GPU, model, gpu_n_batch(model.0));
                let (mut start, mut longest) = (0, (0.0, 0));
                while start < 131_072 {
                    let n = steps.rows(start, 1);
                    let seconds = n as f64 * (a + b * (start as f64 + n as f64 / 2.0));
                    if seconds > longest.0 {
                        longest = (seconds, start);
                    }
                    start += n;
                }
                let (n_weights, n_embd_q, n_layer, n_windows) = model;
                let of_attention = b / (2 * n_embd_q * (n_layer - n_windows)) as f64;
                let cost = of_attention / (a / n_weights as f64);
                println!(
                    "{file}: {:.1} ms for the step at {}, attention {cost:.2} a multiply-add",
                    longest.0 * 1e3,
                    longest.1
                );
                assert!(longest.0 < 0.1, "{file}: {longest:?}");
            }
        }
    }
}
