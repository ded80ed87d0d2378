//! The JSON: every sample, with all that is needed to judge it.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::report::{Kind, Load, Report, Row, commit, spread};

/// Everything that was measured in a run that began at `started`. Bytes, seconds and tokens are plain numbers.
pub fn text(report: &Report, started: SystemTime) -> String {
    let (args, model, engine) = (report.args, report.model, &report.engine);
    let [weights, cache, workspace] = report.memory_bytes();
    let file = args.model.file_name().unwrap_or_default().to_string_lossy();
    let sampling = crate::sampling(args);
    let value = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": commit(),
        "date": date(started),
        "arguments": std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "device": engine.device(),
        "device_name": crate::device::name(engine.device()),
        "driver": crate::device::driver(engine.device()),
        "bandwidth": report.bandwidth,
        "n_threads": report.n_threads,
        "n_batch": engine.n_batch(),
        "decode_path": args.decode_path.name(),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "rounds": args.reps,
        "model": file,
        "architecture": model.desc.architecture,
        "parameters": model.parameters,
        "file_bytes": model.file_bytes,
        "tensor_bytes": model.tensor_bytes,
        "type_bytes": model.type_bytes,
        "matrix_bytes": model.matrix_bytes,
        "memory_bytes": {"weights": weights, "cache": cache, "workspace": workspace},
        "loads": report.loads.iter().map(|load| load_value(load, model.tensor_bytes)).collect::<Vec<_>>(),
        "rows": report.rows.iter().map(|row| row_value(report, row)).collect::<Vec<_>>(),
        "vs": args.vs.as_ref().map(|command| json!({
            "command": command,
            "build": report.rival_build,
            "other": others(report),
        })),
    });
    format!("{value:#}\n")
}

fn load_value(load: &Load, tensor_bytes: u64) -> Value {
    let times = &load.times;
    json!({
        "seconds": load.seconds,
        "bytes_per_second": tensor_bytes as f64 / load.seconds,
        "header": times.header.as_secs_f64(),
        "tokenizer": times.tokenizer.as_secs_f64(),
        "device": times.device.as_secs_f64(),
        "weights": times.weights.as_secs_f64(),
        "prepare": times.prepare.as_secs_f64(),
    })
}

fn row_value(report: &Report, row: &Row) -> Value {
    let speed = spread(&row.speeds()).0;
    let mut value = json!({
        "name": row.name(),
        "kind": row.kind.to_string(),
        "n_tokens": row.n,
        "n_context": row.context,
        "n_sequences": row.n_sequences,
        "seconds": row.seconds,
        "first_token_seconds": row.first_seconds,
        "tokens_per_second": speed,
        "vs_tokens_per_second": report.rival_speeds(row),
    });
    match row.kind {
        Kind::Prefill | Kind::Turn => {
            let flop = report.model.prefill_flop(row.n);
            value["flop"] = json!(flop);
            value["flop_per_second"] = json!(flop * speed / row.n as f64);
        }
        Kind::Decode | Kind::Batch => {
            value["step_bytes"] = json!(report.step_bytes(row));
            value["step_seconds"] = json!(row.n_sequences as f64 / speed);
        }
    }
    value
}

/// What the other program measured and kigo did not: the test and tokens per second.
fn others(report: &Report) -> Vec<Value> {
    let is_other = |speed: &&crate::rival::Speed| !report.rows.iter().any(|row| row.is_like(speed.test));
    let others = report.rival.iter().filter(is_other);
    others.map(|speed| json!([format!("{:?}", speed.test), speed.tokens_per_second])).collect()
}

/// The day in UTC, such as `2026-11-26`.
fn date(time: SystemTime) -> String {
    let days = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86400);
    // Days since 0000-03-01 in the Gregorian calendar, whose cycle of 400 years has 146,097 days.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on: five of them have 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, late) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", cycle * 400 + year + late)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn days_of_the_calendar() {
        let at = |days: u64| date(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86400 + 86399));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!((at(11_016).as_str(), at(11_017).as_str()), ("2000-02-29", "2000-03-01"));
        assert_eq!((at(19_722).as_str(), at(19_723).as_str()), ("2023-12-31", "2024-01-01"));
        assert_eq!((at(19_782).as_str(), at(19_783).as_str()), ("2024-02-29", "2024-03-01"));
        assert_eq!(at(20_783), "2026-11-26");
        assert_eq!(at(47_540), "2100-02-28");
        assert_eq!(at(47_541), "2100-03-01");
    }
}
