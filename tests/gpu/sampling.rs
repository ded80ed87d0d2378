//! Tokens that the device's samplers draw: those of the CPU's from the same logits.

use kigo::backend::cuda::context::Context;
use kigo::backend::cuda::memory::DeviceBuffer;
use kigo::backend::cuda::params::{KigoRow, bytes_of};
use kigo::backend::cuda::sample::Samplers;
use kigo::backend::cuda::stream::Stream;
use kigo::backend::{Device, Purpose};
use kigo::sampler::{Sampler, SamplingParams};

use super::harness::gpu;
use super::random_blocks::Random;

const N_CTX: usize = 256;
/// Tokens of each sequence.
const N_TOKENS: usize = 6;

/// Logits of a row: about normal; the same with few different values; all equal; one far above the others.
fn logits(n_vocab: usize, kind: usize, random: &mut Random) -> Vec<f32> {
    let mut normal = || (0..6).map(|_| random.uniform()).sum::<f32>();
    let mut logits: Vec<f32> = (0..n_vocab).map(|_| 2.0 * normal()).collect();
    match kind {
        1 => logits.iter_mut().for_each(|x| *x = x.round()),
        2 => logits.fill(-1.5),
        3 => logits[n_vocab / 3] = 40.0,
        _ => {}
    }
    logits
}

fn choices() -> Vec<SamplingParams> {
    let d = SamplingParams::default;
    vec![
        SamplingParams { temperature: 0.0, ..d() },
        SamplingParams { temperature: 0.0, repeat_penalty: 1.3, ..d() },
        d(),
        SamplingParams { temperature: 1.0, top_k: 1, ..d() },
        SamplingParams { temperature: 1.7, top_k: 400, top_p: 0.99, min_p: 0.0, ..d() },
        SamplingParams { top_k: 900, top_p: 1.0, ..d() },
        SamplingParams { repeat_penalty: 1.2, ..d() },
        SamplingParams { top_k: 0, top_p: 0.95, min_p: 0.0, ..d() },
        SamplingParams { temperature: 2.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..d() },
        SamplingParams { top_k: 0, top_p: 0.4, repeat_penalty: 0.8, ..d() },
        SamplingParams { temperature: 1.1, top_k: 30_000, min_p: 0.02, ..d() },
    ]
}

#[test]
#[ignore = "needs a GPU"]
fn tokens_are_those_of_the_cpu() {
    let Some(Device::Cuda(ordinal)) = Device::parse(&gpu()) else { panic!("{} is no GPU", gpu()) };
    let context = Context::open(ordinal).unwrap();
    let stream = Stream::new(&context).unwrap();
    let upload = |bytes: &[u8]| {
        let buffer = DeviceBuffer::new(&context, Purpose::Workspace, bytes.len(), "a test").unwrap();
        buffer.upload(&stream, 0, bytes).unwrap();
        buffer
    };
    let mut random = Random(31);
    for n_vocab in [50, 1001, 32_000, 128_256, 300_007] {
        let mut samplers = Samplers::new(&stream, n_vocab, N_CTX, 1, 1).unwrap();
        for (i, params) in choices().into_iter().enumerate() {
            let params = SamplingParams { seed: random.next(), ..params };
            let mut judge = Sampler::new(params.clone()).unwrap();
            let mut tokens: Vec<u32> = (0..9).map(|_| random.next() as u32 % n_vocab as u32).collect();
            samplers.start(&stream, 0, &params, 0, &tokens).unwrap();
            let row = KigoRow { token: 0, position: 8, pages: 0, slot: 0, pad: 0 };
            let rows = upload(bytes_of(&row));
            for step in 0..N_TOKENS {
                let logits = logits(n_vocab, step % 4, &mut random);
                let on_device = upload(&logits.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
                let weigh = samplers.needs_weigh(0);
                samplers.launch(&stream, on_device.address(), rows.address(), 0, 1, weigh).unwrap();
                let found = samplers.wait(0, || stream.is_idle()).unwrap();
                let expected = judge.sample(&logits, &tokens).unwrap();
                assert_eq!(found, expected, "{n_vocab} logits, choice {i}, step {step}");
                tokens.push(found);
                stream.synchronize().unwrap();
            }
        }
    }
}
