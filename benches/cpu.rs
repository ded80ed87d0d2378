//! Loading, prefill and decode of one model on the CPU backend, without tokenizer and sampler: one table, with the
//! share of the machine's read bandwidth that decoding reaches.
//!
//! `cargo bench --bench cpu -- model.gguf [threads]`

#![allow(clippy::unwrap_used, reason = "a benchmark may end")]

use std::path::PathBuf;
use std::time::Instant;

use kigo::backend::cpu::CpuBackend;
use kigo::backend::{Backend, Progress, Row};
use kigo::gguf::Gguf;
use kigo::model::{Weights, arch};
use rayon::prelude::*;

const N_PROMPT: usize = 128;
const N_DECODE: usize = 128;
const ROUNDS: usize = 5;

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Bytes per second at which `n_threads` threads add up a buffer that fits into no cache.
fn read_bandwidth(n_threads: usize) -> f64 {
    let words = vec![1u64; 64 << 20];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
    let seconds = (0..ROUNDS).map(|_| {
        let started = Instant::now();
        let sum: u64 = pool.install(|| words.par_chunks(1 << 20).map(|part| part.iter().sum::<u64>()).sum());
        assert_eq!(sum, words.len() as u64);
        started.elapsed().as_secs_f64()
    });
    size_of_val(&words[..]) as f64 / median(seconds.collect())
}

fn main() -> kigo::Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(path) = args.next().map(PathBuf::from) else {
        println!("usage: cargo bench --bench cpu -- model.gguf [threads]");
        return Ok(());
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let n_threads = args.next().and_then(|n| n.parse().ok()).unwrap_or(cores);

    let started = Instant::now();
    let gguf = Gguf::open(&path)?;
    let desc = arch::describe(gguf.metadata())?;
    let plan = Weights::plan(&gguf, &desc)?;
    let mut backend = CpuBackend::load(&gguf, &desc, &plan, (4096, n_threads), &Progress::default())?;
    let load = started.elapsed().as_secs_f64();

    let token = |i: usize| (i * 7919 % desc.n_vocab) as u32;
    let row = |sequence, i| Row { token: token(i), position: i as u32, sequence, logits: i + 1 >= N_PROMPT };
    let mut prefill = Vec::new();
    let mut decode = Vec::new();
    for sequence in 0..ROUNDS as u64 {
        backend.sequence_reserve(sequence, N_PROMPT + N_DECODE)?;
        let rows: Vec<Row> = (0..N_PROMPT).map(|i| row(sequence, i)).collect();
        let started = Instant::now();
        backend.forward(&rows)?;
        prefill.push(started.elapsed().as_secs_f64());
        let started = Instant::now();
        for i in N_PROMPT..N_PROMPT + N_DECODE {
            backend.forward(&[row(sequence, i)])?;
        }
        decode.push(started.elapsed().as_secs_f64());
        backend.sequence_free(sequence);
    }
    println!("| {} on {n_threads} threads | median of {ROUNDS} |", desc.architecture);
    println!("|---|---|");
    println!("| load | {:.0} ms |", load * 1e3);
    println!("| prefill of {N_PROMPT} tokens | {:.0} tok/s |", N_PROMPT as f64 / median(prefill));
    let tokens_per_second = N_DECODE as f64 / median(decode);
    println!("| decode of {N_DECODE} tokens | {tokens_per_second:.1} tok/s |");
    let (read, bandwidth) = (tokens_per_second * backend.weight_bytes() as f64, read_bandwidth(n_threads));
    println!("| weights read in decoding | {:.1} GB/s |", read / 1e9);
    println!("| read bandwidth | {:.1} GB/s |", bandwidth / 1e9);
    println!("| share of it | {:.0} % |", 100.0 * read / bandwidth);
    Ok(())
}
