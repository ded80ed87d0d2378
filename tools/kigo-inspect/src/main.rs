//! kigo-inspect shows what there is to know about a model in a GGUF file, without loading it. See [`USAGE`].

mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use kigo::engine::{LoadOptions, file_info};
use lexopt::prelude::*;

const USAGE: &str = "\
usage: kigo-inspect MODEL.gguf [options]

Shows sizes, tensor types, tokenizer, chat templates and the memory that the model takes. Only the header of the file is
read, and the device need not be there. The exit status is 1 where kigo cannot run the model.

  --device NAME      cuda, cuda:N, cpu or auto: where memory is taken (default: cuda)
  --n-ctx N          tokens of the context of one inference (default: what kigo takes unasked)
  --n-batch N        most rows in a batch (default: kigo's)
  --json             prints one JSON object instead of tables; kigo_file_info() in kigo.h describes it
  --help
";

struct Args {
    model: PathBuf,
    options: LoadOptions,
    json: bool,
}

impl Args {
    /// What the command line asks for; `None` for `--help`.
    fn parse(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Option<Args>, lexopt::Error> {
        let mut parser = lexopt::Parser::from_iter(args);
        let (mut model, mut options, mut json) = (None, LoadOptions::default(), false);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("device") => options.device = parser.value()?.string()?,
                Long("n-ctx") => options.n_ctx = Some(parser.value()?.parse()?),
                Long("n-batch") => options.n_batch = Some(parser.value()?.parse()?),
                Long("json") => json = true,
                Long("help") | Short('h') => return Ok(None),
                Value(path) if model.is_none() => model = Some(path.into()),
                other => return Err(other.unexpected()),
            }
        }
        let model = model.ok_or("expected a model, found none")?;
        Ok(Some(Args { model, options, json }))
    }
}

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args_os()) {
        Ok(Some(args)) => args,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("kigo-inspect: {error}; see kigo-inspect --help");
            return ExitCode::from(2);
        }
    };
    let info = match file_info(&args.model, &args.options) {
        Ok(info) => info,
        Err(error) => {
            eprintln!("kigo-inspect: {error}");
            return ExitCode::FAILURE;
        }
    };
    if args.json {
        println!("{info:#}");
    } else {
        print!("{}", table::of(&info));
    }
    match info["error"].as_str() {
        Some(error) => {
            eprintln!("kigo-inspect: kigo cannot run it: {error}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}
