//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use kigo::backend::DecodePath;
use lexopt::prelude::*;

pub const USAGE: &str = "\
usage: kigo-bench MODEL.gguf [options]

Measures a model as a program that uses kigo would see it, host and sampling inside; prompts are token ids. Medians of
rounds in which every measurement is made once, after one round that does not count. The table goes to standard
output, progress to standard error.

  --device NAME      cuda, cuda:N, cpu or auto (default: cuda)
  --threads N        threads of the CPU backend (default: one per core)
  --n-batch N        most rows in a batch (default: kigo's)
  --decode-path P    auto, step or stages: how a GPU runs single sequences (default: auto)
  --temperature T    how tokens are drawn; 0 takes the most likely (default: kigo's)
  --top-k N, --top-p P, --min-p P
                     from which; 0, 1 and 0 leave out none (default: kigo's)
  --decode N         tokens generated one by one (default: 128; 0: none)
  --context N,N..    tokens of the prompts before them (default: 128)
  --prompt N,N..     prompts whose prefill is measured (default: 512,2048; 0: none)
  --depth N,N..      the same prompts also as further turns after so many tokens (default: 0, none)
  --batch[=N,N..]    also sequences that decode together (default: 1,2,4,8,16,32,64), with the first context
  --reps R           rounds (default: 5)
  --json FILE        writes every sample there
  --vs 'COMMAND'     runs another program after each of our rounds, prints what it says, and the ratio where it
                     gives tokens per second as llama-bench does (its table, or -o json) for the same tokens: its
                     -p N -d C is --prompt N --depth C, its -n N -d C --decode N --context C (1 without -d). The command finds
                     what is measured in BENCH_MODEL, BENCH_PROMPT, BENCH_DECODE and BENCH_CONTEXT
  --help
";

#[derive(Debug, Clone, PartialEq)]
pub struct Args {
    pub model: PathBuf,
    pub device: String,
    pub threads: Option<usize>,
    pub n_batch: Option<usize>,
    pub decode_path: DecodePath,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub decode: usize,
    pub contexts: Vec<usize>,
    pub prompts: Vec<usize>,
    pub depths: Vec<usize>,
    pub batches: Vec<usize>,
    pub reps: usize,
    pub json: Option<PathBuf>,
    pub vs: Option<String>,
}

impl Args {
    /// What the command line asks for; `None` for `--help`.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Args>, lexopt::Error> {
        let mut parser = lexopt::Parser::from_iter(args);
        let mut model = None;
        let mut args = Args {
            model: PathBuf::new(),
            device: "cuda".into(),
            threads: None,
            n_batch: None,
            decode_path: DecodePath::default(),
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            decode: 128,
            contexts: vec![128],
            prompts: vec![512, 2048],
            depths: Vec::new(),
            batches: Vec::new(),
            reps: 5,
            json: None,
            vs: None,
        };
        while let Some(arg) = parser.next()? {
            match arg {
                Long("device") => args.device = parser.value()?.string()?,
                Long("threads") => args.threads = Some(parser.value()?.parse()?),
                Long("n-batch") => args.n_batch = Some(parser.value()?.parse()?),
                Long("decode-path") => {
                    let name = parser.value()?.string()?;
                    let unknown = || format!("--decode-path: expected {}, found {name:?}", DecodePath::EXPECTED);
                    args.decode_path = DecodePath::parse(&name).ok_or_else(unknown)?;
                }
                Long("temperature") => args.temperature = Some(parser.value()?.parse()?),
                Long("top-k") => args.top_k = Some(parser.value()?.parse()?),
                Long("top-p") => args.top_p = Some(parser.value()?.parse()?),
                Long("min-p") => args.min_p = Some(parser.value()?.parse()?),
                Long("decode") => args.decode = parser.value()?.parse()?,
                Long("context") => args.contexts = sizes(parser.value()?.string()?)?,
                Long("prompt") => args.prompts = sizes(parser.value()?.string()?)?,
                Long("depth") => args.depths = sizes(parser.value()?.string()?)?,
                Long("batch") => {
                    let given =
                        parser.optional_value().map_or(Ok("1,2,4,8,16,32,64".into()), |value| value.string())?;
                    args.batches = sizes(given)?;
                }
                Long("reps") => args.reps = parser.value()?.parse()?,
                Long("json") => args.json = Some(parser.value()?.into()),
                Long("vs") => args.vs = Some(parser.value()?.string()?),
                Long("help") | Short('h') => return Ok(None),
                Value(path) if model.is_none() => model = Some(PathBuf::from(path)),
                arg => return Err(arg.unexpected()),
            }
        }
        args.model = model.ok_or("a model is missing")?;
        if args.reps == 0 {
            return Err("--reps 0: expected at least 1".into());
        }
        if args.contexts.is_empty() && (args.decode > 0 || !args.batches.is_empty()) {
            return Err("--context 0: expected at least 1 token to decode after".into());
        }
        if args.prompts.is_empty() && !args.depths.is_empty() {
            return Err("--depth with --prompt 0: nothing would come after it".into());
        }
        if args.decode == 0 && !args.batches.is_empty() {
            return Err("--batch with --decode 0: nothing would be decoded".into());
        }
        Ok(Some(args))
    }

    /// What the command of `--vs` finds in its environment: the options, in the words of llama-bench.
    pub fn environment(&self) -> [(&'static str, OsString); 4] {
        [
            ("BENCH_MODEL", self.model.clone().into()),
            ("BENCH_PROMPT", joined(&self.prompts)),
            ("BENCH_DECODE", self.decode.to_string().into()),
            ("BENCH_CONTEXT", joined(&self.contexts)),
        ]
    }

    /// The longest context of any measurement, in tokens.
    pub fn n_ctx(&self) -> usize {
        let decoded = self.contexts.iter().map(|context| context.saturating_add(self.decode));
        // A further turn has the token of the one before in front of it.
        let deepest = self.depths.iter().max().map_or(0, |depth| depth.saturating_add(1));
        let longest =
            decoded.chain(self.prompts.iter().map(|prompt| prompt.saturating_add(deepest))).max().unwrap_or(0);
        longest.saturating_add(2)
    }
}

/// What `sizes` reads.
fn joined(sizes: &[usize]) -> OsString {
    let texts: Vec<String> = sizes.iter().map(usize::to_string).collect();
    if texts.is_empty() { "0".into() } else { texts.join(",").into() }
}

/// Numbers with commas; "0" is none.
fn sizes(text: String) -> Result<Vec<usize>, lexopt::Error> {
    let parsed: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    match parsed {
        Ok(sizes) if sizes == [0] => Ok(Vec::new()),
        Ok(sizes) if !sizes.contains(&0) => Ok(sizes),
        _ => Err(format!("\"{text}\": expected numbers from 1, with commas, or 0 for none").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Args>, lexopt::Error> {
        Args::parse(std::iter::once("kigo-bench").chain(line.split_whitespace()).map(Into::into))
    }

    #[test]
    fn reads_what_the_usage_says() {
        let defaults = parse("m.gguf").unwrap().unwrap();
        assert_eq!((defaults.device.as_str(), defaults.decode, defaults.reps), ("cuda", 128, 5));
        assert_eq!(
            (&defaults.contexts[..], &defaults.prompts[..], defaults.n_ctx()),
            (&[128][..], &[512, 2048][..], 2050)
        );
        assert!(defaults.batches.is_empty());
        let line =
            "--device cpu --threads 2 --context 10,3000 --decode 7 --prompt 0 --batch=2,3 --reps 1 m.gguf --vs x";
        let args = parse(line).unwrap().unwrap();
        assert_eq!((&args.contexts[..], &args.prompts[..], &args.batches[..]), (&[10, 3000][..], &[][..], &[2, 3][..]));
        assert_eq!((args.n_ctx(), args.threads, args.vs.as_deref()), (3009, Some(2), Some("x")));
        assert_eq!(parse("m.gguf --batch").unwrap().unwrap().batches, [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(parse("m.gguf --prompt 16 --depth 300,5000 --decode 0").unwrap().unwrap().n_ctx(), 5019);
        let told = args.environment().map(|(_, value)| value.into_string().unwrap());
        assert_eq!(told, ["m.gguf", "0", "7", "10,3000"]);
        assert_eq!(parse("--help").unwrap(), None);
        for line in USAGE.lines().filter_map(|line| line.strip_prefix("  --")) {
            let name = line.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap();
            assert!(parse(&format!("m.gguf --{name} 1")).is_ok() || matches!(name, "batch" | "decode-path"), "{name}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (line, words) in [
            ("", "model"),
            ("m.gguf n.gguf", "n.gguf"),
            ("m.gguf --width 3", "--width"),
            ("m.gguf --depth 3 --prompt 0", "--depth"),
            ("m.gguf --prompt 5,0", "5,0"),
            ("m.gguf --prompt 5,", "5,"),
            ("m.gguf --context 0", "--context"),
            ("m.gguf --reps 0", "--reps"),
            ("m.gguf --decode 0 --batch", "--batch"),
            ("m.gguf --threads two", "two"),
        ] {
            let error = parse(line).expect_err(line).to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
