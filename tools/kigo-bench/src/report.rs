//! The samples, and the table of them; `json.rs` writes all of them.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use kigo::backend::Purpose;
use kigo::engine::{Engine, LoadTimes};
use kigo::sampler::SamplingParams;

use crate::args::Args;
use crate::model::Model;
use crate::rival;

/// What a row of the table measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Prefill,
    /// Prefill after a turn.
    Turn,
    Decode,
    Batch,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Kind::Prefill => "prefill",
            Kind::Turn => "turn",
            Kind::Decode => "decode",
            Kind::Batch => "batch",
        })
    }
}

/// The samples of one test.
pub struct Row {
    pub kind: Kind,
    /// Tokens that are measured, of one sequence.
    pub n: usize,
    /// Tokens before them: of the prompt, or of the turn before it.
    pub context: usize,
    pub n_sequences: usize,
    /// Seconds of each round until all sequences had their first token; none for a prefill.
    pub first_seconds: Vec<f64>,
    /// Seconds of each round for the tokens that are measured.
    pub seconds: Vec<f64>,
}

impl Row {
    pub fn new(kind: Kind, n: usize, context: usize, n_sequences: usize) -> Row {
        Row { kind, n, context, n_sequences, first_seconds: Vec::new(), seconds: Vec::new() }
    }

    /// Tokens per second of each round, all sequences together.
    pub fn speeds(&self) -> Vec<f64> {
        self.seconds.iter().map(|seconds| (self.n * self.n_sequences) as f64 / seconds).collect()
    }

    pub fn name(&self) -> String {
        match self.kind {
            Kind::Prefill => format!("prefill of {}", self.n),
            Kind::Turn => format!("prefill of {} after {}", self.n, self.context),
            Kind::Decode => format!("decode of {} after {}", self.n, self.context),
            Kind::Batch => format!("batch of {}, decode of {} after {}", self.n_sequences, self.n, self.context),
        }
    }

    /// Whether the other program's test measures the same tokens; a prompt has at least one, its cache may have none.
    pub fn is_like(&self, test: rival::Test) -> bool {
        match (self.kind, test) {
            (Kind::Prefill | Kind::Turn, rival::Test::Prefill { n, depth }) => n == self.n && depth == self.context,
            (Kind::Decode, rival::Test::Decode { n, depth }) => n == self.n && depth.max(1) == self.context,
            _ => false,
        }
    }
}

/// Everything that was measured.
pub struct Report<'a> {
    pub args: &'a Args,
    pub model: &'a Model,
    pub engine: Arc<Engine>,
    pub n_threads: usize,
    /// Bytes per second at which the device reads its memory.
    pub bandwidth: Option<f64>,
    pub loads: Vec<Load>,
    pub rows: Vec<Row>,
    /// What the other program printed, of all rounds.
    pub rival: Vec<rival::Speed>,
    /// What it said about itself.
    pub rival_build: Option<String>,
}

/// A load of the model, as its caller saw it and as the engine took it apart.
pub struct Load {
    pub seconds: f64,
    pub times: LoadTimes,
}

impl<'a> Report<'a> {
    pub fn new(
        args: &'a Args,
        model: &'a Model,
        engine: &Arc<Engine>,
        n_threads: usize,
        bandwidth: Option<f64>,
        loads: Vec<Load>,
    ) -> Report<'a> {
        let (rows, rival, rival_build) = (Vec::new(), Vec::new(), None);
        Report { args, model, engine: engine.clone(), n_threads, bandwidth, loads, rows, rival, rival_build }
    }

    /// Adds what the other program printed in a round.
    pub fn rival(&mut self, output: &str) {
        self.rival.extend(rival::speeds(output));
        self.rival_build = rival::build(output).or(self.rival_build.take());
    }

    /// Bytes that a step reads in the middle of a row's tokens: the matrices once, the cache of every sequence.
    pub fn step_bytes(&self, row: &Row) -> f64 {
        let middle = row.context as f64 + row.n as f64 / 2.0;
        let cache = self.model.cache_bytes(middle, self.engine.device());
        self.model.matrix_bytes as f64 + row.n_sequences as f64 * cache
    }

    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> fmt::Result {
        let (engine, model) = (&self.engine, self.model);
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = crate::sampling(self.args);
        write!(
            out,
            "kigo {}{}, device {}",
            env!("CARGO_PKG_VERSION"),
            commit().map_or(String::new(), |commit| format!(", commit {commit}")),
            engine.device()
        )?;
        if let Some(name) = crate::device::name(engine.device()) {
            write!(out, " ({name})")?;
        }
        if engine.device() == "cpu" {
            write!(out, ", {} threads", self.n_threads)?;
        }
        write!(out, "; {} rounds, median (least to most); temperature {temperature}", self.args.reps)?;
        if temperature != 0.0 {
            write!(out, ", top_k {top_k}, top_p {top_p}, min_p {min_p}")?;
        }
        out.push('\n');
        let file = self.args.model.file_name().unwrap_or_default().display();
        let megabytes = model.matrix_bytes as f64 / 1e6;
        writeln!(out, "{file}: {}; a token reads {megabytes:.1} MB of weights", model.desc.architecture)?;
        let [weights, cache, workspace] = self.memory_bytes().map(|bytes| bytes as f64 / 1e6);
        let in_file = model.tensor_bytes as f64 / 1e6;
        writeln!(
            out,
            "memory: {weights:.1} MB of weights ({in_file:.1} MB in the file), {cache:.1} MB of cache, {workspace:.1} MB besides"
        )?;
        match self.bandwidth {
            Some(bandwidth) => writeln!(out, "read bandwidth: {:.1} GB/s, measured\n", bandwidth / 1e9)?,
            None => writeln!(out, "read bandwidth: not measured on this device\n")?,
        }
        writeln!(out, "| | median | least to most | |\n|---|---|---|---|")?;
        let loads: Vec<f64> = self.loads.iter().map(|load| load.seconds).collect();
        if let Some((first, later)) = loads.split_first() {
            let bytes = model.tensor_bytes as f64;
            let rate = |seconds: f64| format!("{:.2} GB/s", bytes / seconds / 1e9);
            writeln!(out, "| first load | {first:.3} s | | {} |", rate(*first))?;
            if !later.is_empty() {
                let (middle, low, high) = spread(later);
                writeln!(out, "| load | {middle:.3} s | {low:.3} to {high:.3} | {} |", rate(middle))?;
            }
        }
        for row in &self.rows {
            if !row.first_seconds.is_empty() {
                let (middle, low, high) = spread(&row.first_seconds);
                let name = match row.kind {
                    Kind::Batch => format!("batch of {}, first tokens, prompts of {}", row.n_sequences, row.context),
                    _ => format!("first token, prompt of {}", row.context),
                };
                let (middle, low, high) = (middle * 1e3, low * 1e3, high * 1e3);
                writeln!(out, "| {name} | {middle:.2} ms | {low:.2} to {high:.2} | |")?;
            }
            let (middle, low, high) = spread(&row.speeds());
            let note = self.note(row, middle);
            writeln!(out, "| {} | {middle:.1} tok/s | {low:.1} to {high:.1} | {note} |", row.name())?;
        }
        self.write_ratios(out)
    }

    /// What the model holds on its device for each purpose.
    pub fn memory_bytes(&self) -> [u64; Purpose::ALL.len()] {
        Purpose::ALL.map(|purpose| self.engine.memory().bytes(purpose))
    }

    /// What a speed means: arithmetic of a prefill, bytes of decoding.
    fn note(&self, row: &Row, tokens_per_second: f64) -> String {
        let steps_per_second = tokens_per_second / row.n_sequences as f64;
        if matches!(row.kind, Kind::Prefill | Kind::Turn) {
            let flop_per_second = self.model.prefill_flop(row.n) * tokens_per_second / row.n as f64;
            let milliseconds = row.n as f64 / tokens_per_second * 1e3;
            return format!("{:.2} TFLOP/s, {milliseconds:.2} ms", flop_per_second / 1e12);
        }
        let bytes = self.step_bytes(row);
        let read = bytes * steps_per_second;
        let share =
            self.bandwidth.map_or(String::new(), |most| format!(", {:.0} % of the bandwidth", 100.0 * read / most));
        let what = if row.kind == Kind::Batch { "step" } else { "token" };
        format!(
            "{:.1} us and {:.1} MB a {what}, {:.1} GB/s read{share}",
            1e6 / steps_per_second,
            bytes / 1e6,
            read / 1e9
        )
    }

    /// kigo beside the other program, where both measured the same.
    fn write_ratios(&self, out: &mut String) -> fmt::Result {
        let compared = self.rows.iter().map(|row| (row, self.rival_speeds(row)));
        for (row, theirs) in compared.filter(|(_, theirs)| !theirs.is_empty()) {
            let ((middle, ..), (their_middle, low, high)) = (spread(&row.speeds()), spread(&theirs));
            let ratio = middle / their_middle;
            let name = row.name();
            writeln!(
                out,
                "{name}: --vs has {their_middle:.1} tok/s ({low:.1} to {high:.1}); kigo is at {ratio:.2} of it"
            )?;
        }
        for speed in self.rival.iter().filter(|speed| !self.rows.iter().any(|row| row.is_like(speed.test))) {
            writeln!(out, "--vs also measured {:?}: {:.1} tok/s", speed.test, speed.tokens_per_second)?;
        }
        Ok(())
    }

    /// Tokens per second of the other program in what a row measures, of each round.
    pub fn rival_speeds(&self, row: &Row) -> Vec<f64> {
        let alike = self.rival.iter().filter(|speed| row.is_like(speed.test));
        alike.map(|speed| speed.tokens_per_second).collect()
    }
}

/// The commit that was built, where the build names one.
pub fn commit() -> Option<&'static str> {
    option_env!("KIGO_COMMIT")
}

/// Median, least and most; the mean of the middle two of an even number.
pub fn spread(samples: &[f64]) -> (f64, f64, f64) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    ((at(n / 2) + at(n.saturating_sub(1) / 2)) / 2.0, at(0), at(n.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_of_samples() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (2.0, 1.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0));
        assert!(spread(&[]).0.is_nan());
    }

    #[test]
    fn only_tests_of_the_same_tokens_are_compared() {
        let prefill = Row::new(Kind::Prefill, 512, 0, 1);
        let decode = Row::new(Kind::Decode, 128, 512, 1);
        assert!(prefill.is_like(rival::Test::Prefill { n: 512, depth: 0 }));
        assert!(!prefill.is_like(rival::Test::Prefill { n: 512, depth: 512 }));
        assert!(Row::new(Kind::Turn, 512, 512, 1).is_like(rival::Test::Prefill { n: 512, depth: 512 }));
        assert!(decode.is_like(rival::Test::Decode { n: 128, depth: 512 }));
        assert!(!decode.is_like(rival::Test::Decode { n: 128, depth: 0 }));
        assert!(Row::new(Kind::Decode, 128, 1, 1).is_like(rival::Test::Decode { n: 128, depth: 0 }));
        assert!(!decode.is_like(rival::Test::Prefill { n: 128, depth: 0 }));
    }
}
