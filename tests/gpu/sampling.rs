//! Tokens that the device's samplers draw: those of the CPU's from the same logits.

use kigo::backend::cuda::context::Context;
use kigo::backend::cuda::memory::DeviceBuffer;
use kigo::backend::cuda::params::{KigoRow, bytes_of};
use kigo::backend::cuda::sample::Samplers;
use kigo::backend::cuda::stream::Stream;
use kigo::backend::{Device, Purpose};
use kigo::sampler::{Sampler, SamplingParams};

use super::draws::{choices, logits};
use super::harness::gpu;
use super::random_blocks::Random;

const N_CTX: usize = 256;
/// Tokens of each sequence.
const N_TOKENS: usize = 6;

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
    // Rows of several sequences at once share the device, and a block has several slices of a large vocabulary.
    for (n_vocab, n) in
        [(50, 1), (1001, 5), (32_000, 1), (32_000, 8), (128_256, 1), (128_256, 8), (300_007, 1), (300_007, 3)]
    {
        let mut samplers = Samplers::new(&stream, n_vocab, N_CTX, n, n).unwrap();
        for (i, group) in choices().chunks(n).enumerate() {
            let mut sequences = Vec::new();
            for (slot, params) in (0..).zip(group) {
                let params = SamplingParams { seed: random.next(), ..params.clone() };
                let tokens: Vec<u32> = (0..9).map(|_| random.next() as u32 % n_vocab as u32).collect();
                samplers.start(&stream, slot, &params, 0, &tokens).unwrap();
                sequences.push((slot, Sampler::new(params).unwrap(), tokens));
            }
            let row = |slot| KigoRow { token: 0, position: 8, pages: 0, slot, pad: 0 };
            let rows: Vec<u8> = sequences.iter().flat_map(|(slot, ..)| bytes_of(&row(*slot)).to_vec()).collect();
            let rows = upload(&rows);
            for step in 0..N_TOKENS {
                let logits: Vec<_> =
                    (0..sequences.len()).map(|i| logits(n_vocab, (step + i) % 4, &mut random)).collect();
                let on_device = upload(&logits.iter().flatten().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
                let weigh = sequences.iter().any(|(slot, ..)| samplers.needs_weigh(*slot));
                let n = sequences.len() as u32;
                samplers.launch(&stream, on_device.address(), rows.address(), 0, n, weigh).unwrap();
                for ((slot, judge, tokens), logits) in sequences.iter_mut().zip(&logits) {
                    let found = samplers.wait(*slot, || stream.is_idle()).unwrap();
                    let expected = judge.sample(logits, tokens).unwrap();
                    assert_eq!(found, expected, "{n_vocab} logits, {n} rows, group {i}, row {slot}, step {step}");
                    tokens.push(found);
                }
                stream.synchronize().unwrap();
            }
        }
    }
}
