"""What docs/benchmarks keeps of the JSON of kigo-bench: a file for each run, in a folder for each machine.

A data file is that JSON (tools/kigo-bench/src/json.rs), in bytes, seconds and tokens, with these changes: samples are
[median, least, most], or [median] where no samples were kept; `command` is the command line without folders, `--json` and
`--vs`; `first_load` and `load`, which has the medians of all later ones, stand for `loads`; what can be computed from the rest is
left out. What was not measured is not there. `note` says what a reader must know besides.
"""

import json
import shlex
import statistics

KEPT = ("version", "commit", "date", "device", "device_name", "driver", "bandwidth", "n_threads", "n_batch", "decode_path",
        "temperature", "rounds", "architecture", "parameters", "file_bytes", "tensor_bytes", "type_bytes", "matrix_bytes",
        "memory_bytes")
KEPT_OF_ROW = ("kind", "n_tokens", "n_context", "n_sequences", "flop", "step_bytes")
# The steps of a load.
STEPS = ("header", "tokenizer", "device", "weights", "prepare")


def spread(samples):
    """Median, least and most, with six digits.

    >>> spread([3, 1, 2.00000049])
    [2.0, 1.0, 3.0]
    >>> spread([4, 1, 2, 3])
    [2.5, 1.0, 4.0]
    """
    return [float(f"{x:.6g}") for x in (statistics.median(samples), min(samples), max(samples))]


def command_of(arguments):
    """The command line without folders and without what is named elsewhere.

    >>> command_of(["/tmp/a b.gguf", "--json", "out/x.json", "--reps", "3", "--vs", "llama-bench -m x", "--batch=1,2"])
    "kigo-bench 'a b.gguf' --reps 3 --batch=1,2"
    """
    words, skip = ["kigo-bench"], False
    for word in arguments:
        if skip or word in ("--json", "--vs"):
            skip = not skip
        elif not word.startswith(("--json=", "--vs=")):
            words.append(word.rsplit("/", 1)[-1])
    return shlex.join(words)


def condensed(report):
    """The data file of a JSON of kigo-bench."""
    data = {"model": report["model"].removesuffix(".gguf"), "command": command_of(report["arguments"])}
    data |= {key: report[key] for key in KEPT if report[key] is not None}
    first, later = report["loads"][0], report["loads"][1:]
    data["first_load"] = {key: float(f"{first[key]:.6g}") for key in ("seconds", *STEPS)}
    if later:
        data["load"] = {key: spread([load[key] for load in later]) for key in ("seconds", "bytes_per_second")}
        data["load"] |= {key: spread([load[key] for load in later])[0] for key in STEPS}
    data["rows"] = []
    for row in report["rows"]:
        kept = {key: row[key] for key in KEPT_OF_ROW if key in row}
        for key in ("seconds", "first_token_seconds", "vs_tokens_per_second"):
            kept |= {key: spread(row[key])} if row[key] else {}
        data["rows"].append(kept)
    if report["vs"]:
        command = [word.rsplit("/", 1)[-1] for word in report["vs"]["command"].split()]
        data["vs"] = {"command": " ".join(command), "build": report["vs"]["build"]}
    return data


def dumped(data):
    """JSON with a line for each row.

    >>> print(dumped({"a": 1, "rows": [{"n": 2}, {"n": 3}]}), end="")
    {
      "a": 1,
      "rows": [
        {"n": 2},
        {"n": 3}
      ]
    }
    """
    lines = []
    for key, value in data.items():
        text = json.dumps(value)
        if key == "rows":
            text = "[\n" + ",\n".join(f"    {json.dumps(row)}" for row in value) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def rows_of(data, kind):
    return [row for row in data["rows"] if row["kind"] == kind]


def speed(row):
    """Tokens per second from the seconds of a row, all sequences together."""
    return lambda seconds: row["n_tokens"] * row["n_sequences"] / seconds


def first_tokens(data):
    """Seconds to the first token by the length of the prompt, from prefills and, for other lengths, from decoding."""
    found = {row["n_context"]: row["first_token_seconds"] for row in rows_of(data, "decode") if "first_token_seconds" in row}
    return dict(sorted((found | {row["n_tokens"]: row["seconds"] for row in rows_of(data, "prefill")}).items()))
