//! What the device is, and what reading alone reaches on it: the ceiling of decoding.

use std::time::Instant;

use kigo::backend::Device;

const ROUNDS: usize = 5;
/// Bytes of a buffer that fits into no cache of a CPU.
const CPU_BYTES: usize = 512 << 20;
/// The same of a GPU; a quarter of what is free if that is less.
#[cfg(feature = "cuda")]
const CUDA_BYTES: u64 = 2 << 30;
#[cfg(feature = "cuda")]
const CUDA_ROUNDS: usize = 10;
/// As many as a multiprocessor holds.
#[cfg(feature = "cuda")]
const CUDA_BLOCKS_PER_SM: u32 = 4;

/// What its maker calls the device.
pub fn name(device: &str) -> Option<String> {
    match Device::parse(device)? {
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let context = kigo::backend::cuda::context::Context::open(ordinal).ok()?;
            Some(context.info().name.clone())
        }
        Device::Cpu => {
            let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
            let line = info.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_string())
        }
        _ => None,
    }
}

/// The version of the driver below a GPU, such as `580.159.03`, where the system tells it.
pub fn driver(device: &str) -> Option<String> {
    if device == "cpu" {
        return None;
    }
    let module = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    module.as_deref().and_then(version_in).or_else(|| {
        let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
        let output = std::process::Command::new("nvidia-smi").args(query).output().ok()?;
        version_in(&String::from_utf8_lossy(&output.stdout))
    })
}

/// The first word that is numbers with dots.
fn version_in(text: &str) -> Option<String> {
    let is_version = |word: &&str| {
        let mut numbers = word.split('.');
        numbers.clone().count() > 1 && numbers.all(|number| number.parse::<u32>().is_ok())
    };
    text.split_whitespace().find(is_version).map(str::to_string)
}

/// Bytes per second at which the device reads its memory; `None` where nothing measures it.
pub fn bandwidth(device: &str, n_threads: usize) -> Option<f64> {
    match Device::parse(device)? {
        Device::Cpu => Some(cpu(n_threads)),
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => cuda(ordinal).ok(),
        _ => None,
    }
}

/// Bytes per second at which one kernel reads a buffer that fits into no cache of the device.
#[cfg(feature = "cuda")]
fn cuda(ordinal: u32) -> kigo::Result<f64> {
    use kigo::backend::Purpose;
    use kigo::backend::cuda::context::Context;
    use kigo::backend::cuda::memory::DeviceBuffer;
    use kigo::backend::cuda::module::{Module, embedded};
    use kigo::backend::cuda::params::KigoRead;
    use kigo::backend::cuda::stream::{Event, Launch, Order, Stream};

    let context = Context::open(ordinal)?;
    let stream = Stream::new(&context)?;
    // The model is loaded meanwhile.
    let n_pieces = CUDA_BYTES.min(context.free_memory()? / 4) / 16;
    let bytes = n_pieces * 16;
    let buffer = DeviceBuffer::new(&context, Purpose::Workspace, bytes as usize, "a buffer to read")?;
    let sink = DeviceBuffer::new(&context, Purpose::Workspace, 4, "a word")?;
    buffer.fill_u8(&stream, 0)?;
    sink.fill_u8(&stream, 0)?;
    let kernel = Module::load(&context, embedded("read")?)?.function("read_memory")?;
    let params = KigoRead { from: buffer.address(), n: n_pieces, sink: sink.address() };
    let n_blocks = context.info().n_sm * CUDA_BLOCKS_PER_SM;
    let launch = Launch { grid: [n_blocks, 1, 1], block: [512, 1, 1], shared_bytes: 0, order: Order::Serial };
    let (start, end) = (Event::new(&context)?, Event::new(&context)?);
    let mut milliseconds = [0.0; CUDA_ROUNDS];
    stream.launch(&kernel, launch, &params)?;
    for round in &mut milliseconds {
        start.record(&stream)?;
        stream.launch(&kernel, launch, &params)?;
        end.record(&stream)?;
        end.synchronize()?;
        *round = end.elapsed(&start)?;
    }
    milliseconds.sort_by(f32::total_cmp);
    Ok(bytes as f64 / (f64::from(milliseconds[CUDA_ROUNDS / 2]) / 1e3))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_in_what_the_system_says() {
        let module = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build\nGCC version:  gcc version 12.3.0\n";
        assert_eq!(version_in(module).as_deref(), Some("580.159.03"));
        assert_eq!(version_in("570.86\n570.86\n").as_deref(), Some("570.86"));
        assert_eq!(version_in("Failed to initialize NVML: x86_64 . 12"), None);
        assert_eq!(driver("cpu"), None);
    }
}
