//! The other program of `--vs`.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use serde_json::Value;

/// A speed that it printed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    pub test: Test,
    pub tokens_per_second: f64,
}

/// What llama-bench measures: `n` tokens after `depth` that are in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    Prefill { n: usize, depth: usize },
    Decode { n: usize, depth: usize },
}

/// Runs `command` in a shell with these variables and returns what it wrote to standard output.
pub fn run(command: &str, environment: &[(&str, OsString)]) -> Result<String, String> {
    let failed = |what: &dyn std::fmt::Display| format!("--vs '{command}': {what}");
    let environment = environment.iter().map(|(name, value)| (name, value));
    let output = Command::new("sh").arg("-c").arg(command).envs(environment).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(failed(&output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The speeds in what llama-bench printed, as a table or as JSON.
pub fn speeds(text: &str) -> Vec<Speed> {
    let json = text.find("[\n").and_then(|at| serde_json::from_str::<Vec<Value>>(&text[at..]).ok());
    match json {
        Some(entries) => entries.iter().filter_map(speed_of_json).collect(),
        None => speeds_of_table(text),
    }
}

/// What llama-bench says about itself, such as `1234abc (5678)`.
pub fn build(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("build: ")).map(|build| build.trim().to_string())
}

fn speed_of_json(entry: &Value) -> Option<Speed> {
    let size = |key: &str| Some(entry.get(key).and_then(Value::as_u64).unwrap_or(0) as usize);
    let (n_prompt, n_gen, depth) = (size("n_prompt")?, size("n_gen")?, size("n_depth")?);
    let test = match (n_prompt, n_gen) {
        (n, 0) => Test::Prefill { n, depth },
        (0, n) => Test::Decode { n, depth },
        _ => return None,
    };
    Some(Speed { test, tokens_per_second: entry.get("avg_ts")?.as_f64()? })
}

fn speeds_of_table(text: &str) -> Vec<Speed> {
    let mut columns = None;
    let mut speeds = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let column = |name: &str| cells.iter().position(|&cell| cell == name);
        if let (Some(test), Some(speed)) = (column("test"), column("t/s")) {
            columns = Some((test, speed));
        } else if let Some((test, speed)) = columns
            && let Some(test) = cells.get(test).and_then(|cell| test_of_name(cell))
            && let Some(number) = cells.get(speed).and_then(|cell| cell.split_whitespace().next()?.parse().ok())
        {
            speeds.push(Speed { test, tokens_per_second: number });
        }
    }
    speeds
}

/// `pp512`, `tg128` or `tg128 @ d512`.
fn test_of_name(name: &str) -> Option<Test> {
    let (name, depth) = match name.split_once(" @ d") {
        Some((name, depth)) => (name, depth.parse().ok()?),
        None => (name, 0),
    };
    if let Some(n) = name.strip_prefix("pp") {
        return Some(Test::Prefill { n: n.parse().ok()?, depth });
    }
    Some(Test::Decode { n: name.strip_prefix("tg")?.parse().ok()?, depth })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_table_and_the_json_of_llama_bench() {
        let table = "\
ggml_cuda_init: found 1 CUDA devices:
| model                          |       size |     params | backend    | ngl | fa |            test |                  t/s |
| ------------------------------ | ---------: | ---------: | ---------- | --: | -: | --------------: | -------------------: |
| llama 8B F16                   |  14.96 GiB |     8.03 B | CUDA       |  99 |  1 |           pp512 |     21400.12 ± 33.10 |
| llama 8B F16                   |  14.96 GiB |     8.03 B | CUDA       |  99 |  1 |    tg128 @ d512 |        209.50 ± 0.12 |

build: 1234 (5678)
";
        let expected = [
            Speed { test: Test::Prefill { n: 512, depth: 0 }, tokens_per_second: 21400.12 },
            Speed { test: Test::Decode { n: 128, depth: 512 }, tokens_per_second: 209.5 },
        ];
        assert_eq!(speeds(table), expected);
        assert_eq!(build(table).as_deref(), Some("1234 (5678)"));
        assert_eq!(speeds(&format!("{table}{table}")).len(), 4);
        let json = "log line\n[\n  {\"n_prompt\": 512, \"n_gen\": 0, \"n_depth\": 0, \"avg_ts\": 21400.12},\n  \
                    {\"n_prompt\": 0, \"n_gen\": 128, \"n_depth\": 512, \"avg_ts\": 209.5}, {\"n_prompt\": 3, \
                    \"n_gen\": 4, \"avg_ts\": 1.0}\n]\n";
        assert_eq!(speeds(json), expected);
        assert_eq!(build(json), None);
        assert_eq!(speeds("| a | b |\n| pp512 | 3 |\nno numbers"), []);
    }

    #[test]
    fn runs_a_command_and_says_why_not() {
        assert_eq!(run("echo a; echo $B", &[("B", "b".into())]).unwrap(), "a\nb\n");
        assert!(run("exit 3", &[]).expect_err("a failure").contains("exit 3"));
    }
}
