//! kigo-bench measures a model through kigo: loading, prefill, first token, decoding, many sequences at once. See
//! [`args::USAGE`].

mod args;
mod device;
mod json;
mod measure;
mod model;
mod report;
mod rival;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use args::Args;
use kigo::engine::{Engine, LoadOptions};
use kigo::sampler::SamplingParams;
use measure::{Sequences, prefill, prompt};
use model::Model;
use report::{Kind, Load, Report, Row};

/// Loads that are measured, at most; the first also starts the device.
const MAX_LOADS: usize = 3;
/// Time from one load to the next: the driver clears what was freed, 16 GB in some 100 ms, by what copies to the device too. A load
/// at once took 350 ms on an H200 that otherwise took 330.
const AFTER_A_LOAD: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args_os()) {
        Ok(Some(args)) => args,
        Ok(None) => {
            print!("{}", args::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("kigo-bench: {error}; see kigo-bench --help");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("kigo-bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let (progress, started) = (Progress::start(), SystemTime::now());
    progress.say("reading the file");
    let model = Model::read(&args.model).map_err(|error| error.in_file(&args.model).to_string())?;
    let (engine, loads) = load(args, &progress)?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let n_threads = args.threads.unwrap_or(cores);
    progress.say("read bandwidth");
    let bandwidth = device::bandwidth(engine.device(), n_threads);
    let mut report = Report::new(args, &model, &engine, n_threads, bandwidth, loads);

    let sampling = sampling(args);
    let mut tests = tests(args);
    for round in 0..=args.reps {
        for test in &mut tests {
            let name = test.row.name();
            progress.say(&if round == 0 { format!("warm-up: {name}") } else { format!("round {round}: {name}") });
            let seconds = test.work.run(&engine, &sampling, &test.row, round as u64)?;
            if round > 0 {
                test.row.first_seconds.extend(seconds.first);
                test.row.seconds.push(seconds.all);
            }
        }
        if let Some(command) = args.vs.as_ref().filter(|_| round > 0) {
            progress.say(&format!("round {round}: {command}"));
            let output = rival::run(command, &args.environment())?;
            output.lines().for_each(|line| println!("vs: {line}"));
            report.rival(&output);
        }
    }
    report.rows = tests.into_iter().map(|test| test.row).collect();
    print!("{}", report.table());
    if let Some(path) = &args.json {
        std::fs::write(path, json::text(&report, started)).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Loads the model a few times; returns the last one, and what each load took.
fn load(args: &Args, progress: &Progress) -> Result<(Arc<Engine>, Vec<Load>), String> {
    let defaults = LoadOptions::default();
    let options = LoadOptions {
        device: args.device.clone(),
        n_ctx: Some(args.n_ctx()),
        n_threads: args.threads,
        n_batch: args.n_batch,
        tokenizer: defaults.tokenizer,
        direct_io: defaults.direct_io,
        decode_path: args.decode_path,
        // What is measured is computed each time.
        prompt_cache: 0,
    };
    let mut loads = Vec::new();
    loop {
        progress.say(&format!("load {}", loads.len() + 1));
        let started = Instant::now();
        let engine = Engine::load(&args.model, &options).map_err(|error| error.to_string())?;
        loads.push(Load { seconds: started.elapsed().as_secs_f64(), times: *engine.load_times() });
        if loads.len() == args.reps.min(MAX_LOADS) {
            return Ok((engine, loads));
        }
        drop(engine);
        std::thread::sleep(AFTER_A_LOAD);
    }
}

fn sampling(args: &Args) -> SamplingParams {
    let defaults = SamplingParams::default();
    SamplingParams {
        temperature: args.temperature.unwrap_or(defaults.temperature),
        top_k: args.top_k.unwrap_or(defaults.top_k),
        top_p: args.top_p.unwrap_or(defaults.top_p),
        min_p: args.min_p.unwrap_or(defaults.min_p),
        ..defaults
    }
}

/// One thing that is measured in every round.
struct Test {
    row: Row,
    work: Work,
}

enum Work {
    Prefill,
    Decode(Sequences),
}

/// What one round of a test took.
struct Seconds {
    /// Until the first token, where more follow.
    first: Option<f64>,
    /// What the speed is made of.
    all: f64,
}

impl Work {
    fn run(
        &mut self,
        engine: &Arc<Engine>,
        sampling: &SamplingParams,
        row: &Row,
        round: u64,
    ) -> Result<Seconds, String> {
        match self {
            Work::Prefill => {
                let prompt = prompt(engine.n_vocab(), row.context + row.n, round);
                let time = prefill(engine, &prompt, row.context, sampling)?;
                Ok(Seconds { first: None, all: time.as_secs_f64() })
            }
            Work::Decode(sequences) => {
                let run = sequences.run(engine, sampling)?;
                Ok(Seconds { first: Some(run.first.as_secs_f64()), all: run.rest.as_secs_f64() })
            }
        }
    }
}

/// What the command line asks to measure, in the order of the table.
fn tests(args: &Args) -> Vec<Test> {
    let prefill = |n, depth| {
        let kind = if depth == 0 { Kind::Prefill } else { Kind::Turn };
        Test { row: Row::new(kind, n, depth, 1), work: Work::Prefill }
    };
    let decode = |kind, context, n_sequences| Test {
        row: Row::new(kind, args.decode, context, n_sequences),
        work: Work::Decode(Sequences::new(n_sequences, context, args.decode)),
    };
    let mut tests = Vec::new();
    for depth in std::iter::once(0).chain(args.depths.iter().copied()) {
        tests.extend(args.prompts.iter().map(|&n| prefill(n, depth)));
    }
    if args.decode > 0 {
        tests.extend(args.contexts.iter().map(|&context| decode(Kind::Decode, context, 1)));
    }
    if let Some(&context) = args.contexts.first() {
        tests.extend(args.batches.iter().map(|&n| decode(Kind::Batch, context, n)));
    }
    tests
}

/// Says on standard error what runs, once a run has lasted for a while.
struct Progress(Instant);

impl Progress {
    fn start() -> Progress {
        Progress(Instant::now())
    }

    fn say(&self, what: &str) {
        let seconds = self.0.elapsed().as_secs_f64();
        if seconds > 2.0 {
            eprintln!("kigo-bench: {seconds:6.1} s: {what}");
        }
    }
}
