//! Runs sequences and takes the time.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use kigo::engine::Engine;
use kigo::sampler::SamplingParams;
use kigo::session::{Prompt, Session, SessionOptions};

/// Prompts that are tried until the model writes as much as is asked for.
const MAX_ATTEMPTS: usize = 64;

/// What one run of some sequences took.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// From the start until every sequence had its first token.
    pub first: Duration,
    /// From then until every sequence had all its tokens.
    pub rest: Duration,
}

/// When a sequence had its first and its last token, and whether it had all that were asked for.
struct Finished {
    first: Instant,
    last: Instant,
    complete: bool,
}

/// A prompt of `len` tokens, spread over the vocabulary; `variant` makes another one.
pub fn prompt(n_vocab: usize, len: usize, variant: u64) -> Vec<u32> {
    // SplitMix64 (Steele et al. 2014).
    let mut state = variant.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let next = |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n_vocab as u64) as u32
    };
    (0..len).map(next).collect()
}

/// Sequences that decode `n_decode` tokens after their first, together.
pub struct Sequences {
    len: usize,
    n_decode: usize,
    /// A prompt each.
    variants: Vec<u64>,
    next: u64,
}

impl Sequences {
    /// `n` sequences with prompts of `len` tokens.
    pub fn new(n: usize, len: usize, n_decode: usize) -> Sequences {
        Sequences { len, n_decode, variants: (0..n as u64).collect(), next: n as u64 }
    }

    /// Runs all of them once. A sequence that the model ends early gets another prompt, and all run again; as the
    /// same prompt always gives the same tokens, that happens in the first run or not at all.
    pub fn run(&mut self, engine: &Arc<Engine>, sampling: &SamplingParams) -> Result<Run, String> {
        for _ in 0..MAX_ATTEMPTS {
            let prompts: Vec<Vec<u32>> =
                self.variants.iter().map(|&variant| prompt(engine.n_vocab(), self.len, variant)).collect();
            let started = Instant::now();
            let finished = together(engine, &prompts, sampling, self.n_decode)?;
            let first = finished.iter().map(|f| f.first).max().unwrap_or(started);
            let last = finished.iter().map(|f| f.last).max().unwrap_or(started);
            if finished.iter().all(|f| f.complete) {
                return Ok(Run { first: first - started, rest: last - first });
            }
            for (variant, _) in self.variants.iter_mut().zip(&finished).filter(|(_, f)| !f.complete) {
                *variant = self.next;
                self.next += 1;
            }
        }
        Err(format!(
            "the model ends its text within {} tokens after {MAX_ATTEMPTS} prompts; use --decode",
            self.n_decode
        ))
    }
}

/// The time from the start of a session until its first token, or until the model ends the text there. If the first `depth` tokens
/// of the prompt are a turn of their own, it is that of the next one.
pub fn prefill(
    engine: &Arc<Engine>,
    prompt: &[u32],
    depth: usize,
    sampling: &SamplingParams,
) -> Result<Duration, String> {
    let (before, own) = prompt.split_at(depth.min(prompt.len()));
    if before.is_empty() {
        let started = Instant::now();
        return Ok(sequence(engine, own, sampling, 0, &Barrier::new(1))?.first - started);
    }
    let options = SessionOptions { sampling: sampling.clone(), max_tokens: Some(1), ..SessionOptions::default() };
    let turn = || {
        let mut session = Session::start(engine, Prompt::Tokens(before), &options)?;
        next(&mut session)?;
        let started = Instant::now();
        session.append(Prompt::Tokens(own))?;
        next(&mut session)?;
        Ok(started.elapsed())
    };
    turn().map_err(|error: kigo::Error| error.to_string())
}

/// Runs a session for each prompt, each in a thread of its own if they are several.
fn together(
    engine: &Arc<Engine>,
    prompts: &[Vec<u32>],
    sampling: &SamplingParams,
    n_decode: usize,
) -> Result<Vec<Finished>, String> {
    let barrier = Barrier::new(prompts.len());
    if let [prompt] = prompts {
        return Ok(vec![sequence(engine, prompt, sampling, n_decode, &barrier)?]);
    }
    std::thread::scope(|scope| {
        let barrier = &barrier;
        let threads: Vec<_> = prompts
            .iter()
            .map(|prompt| scope.spawn(move || sequence(engine, prompt, sampling, n_decode, barrier)))
            .collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a sequence panicked".to_string())?).collect()
    })
}

/// Runs one session; its first token waits for those of all that share the barrier.
fn sequence(
    engine: &Arc<Engine>,
    prompt: &[u32],
    sampling: &SamplingParams,
    n_decode: usize,
    barrier: &Barrier,
) -> Result<Finished, String> {
    let options =
        SessionOptions { sampling: sampling.clone(), max_tokens: Some(n_decode + 1), ..SessionOptions::default() };
    let session = Session::start(engine, Prompt::Tokens(prompt), &options).and_then(|mut session| {
        next(&mut session)?;
        Ok(session)
    });
    let first = Instant::now();
    barrier.wait();
    let mut session = session.map_err(|error| error.to_string())?;
    while session.finish_reason().is_none() && session.generated_tokens() <= n_decode {
        next(&mut session).map_err(|error| error.to_string())?;
    }
    Ok(Finished { first, last: Instant::now(), complete: session.generated_tokens() == n_decode + 1 })
}

fn next(session: &mut Session) -> kigo::Result<()> {
    session.peek_token()?;
    session.take_token();
    Ok(())
}
