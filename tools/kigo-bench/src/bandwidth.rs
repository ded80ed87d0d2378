//! What reading alone reaches: the ceiling of decoding.

use std::time::Instant;

use kigo::backend::Device;

const ROUNDS: usize = 5;
/// Bytes of a buffer that fits into no cache of a CPU.
const CPU_BYTES: usize = 512 << 20;

/// Bytes per second at which the device reads its memory; `None` where nothing measures it.
pub fn bandwidth(device: &str, n_threads: usize) -> Option<f64> {
    match Device::parse(device)? {
        Device::Cpu => Some(cpu(n_threads)),
        Device::Cuda(_) | Device::Auto => None,
    }
}

/// Bytes per second at which `n_threads` threads add up a buffer.
fn cpu(n_threads: usize) -> f64 {
    let words = vec![1u64; CPU_BYTES / size_of::<u64>()];
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            let sum: u64 = std::thread::scope(|scope| {
                let parts = words.chunks(words.len().div_ceil(n_threads));
                let threads: Vec<_> = parts.map(|part| scope.spawn(|| part.iter().sum::<u64>())).collect();
                threads.into_iter().filter_map(|thread| thread.join().ok()).sum()
            });
            std::hint::black_box(sum);
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    CPU_BYTES as f64 / seconds[ROUNDS / 2]
}
