#!/usr/bin/env python3
"""Make the tables and plots of docs/benchmarks.md from what kigo-bench measured.

  make_benchmarks.py add FOLDER FILE...   keep JSON files of kigo-bench as docs/benchmarks/FOLDER/MODEL.json
  make_benchmarks.py                      write tables and plots anew (make benchmark-docs, which has matplotlib)
  make_benchmarks.py --check              say whether tables and plots are those of the data; needs Python 3.9 alone

A folder of docs/benchmarks is a machine. Its tables and plots stand in the page between the lines `<!-- tables: FOLDER -->`
and `<!-- end -->`; all other lines are written by people and stay. What a machine has no data for is left out.
benchmark_data.py says what a data file holds.
"""

import argparse
import doctest
import json
import sys
from pathlib import Path

import benchmark_data
import benchmark_series
from benchmark_data import STEPS, condensed, dumped, first_tokens, rows_of, speed
from benchmark_series import PLOTS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
DATA = ROOT / "docs" / "benchmarks"
BEGIN, END = "<!-- tables: ", "<!-- end -->"


def number(x):
    """A number with three digits or more, and commas.

    >>> [number(x) for x in (12345.6, 123.45, 12.34, 1.234, 0.1234)]
    ['12,346', '123', '12.3', '1.23', '0.123']
    """
    return f"{x:,.{0 if x >= 100 else 1 if x >= 10 else 2 if x >= 1 else 3}f}"


def cell(values, scale=1.0):
    """Median, and the range where it is known; `scale` is a factor, or a function that may turn the order around.

    >>> cell([2.0, 1.0, 3.0], 100), cell([0.5]), cell(None), cell([2.0, 1.0, 4.0], lambda x: 8 / x)
    ('200 (100 to 300)', '0.500', '', '4.00 (2.00 to 8.00)')
    """
    if not values:
        return ""
    middle, *ends = [scale(x) if callable(scale) else x * scale for x in values]
    return number(middle) + (f" ({number(min(ends))} to {number(max(ends))})" if ends else "")


def short_cell(values, scale=1.0):
    """Median, and half the range in percent of it where that is 1 or more.

    >>> short_cell([100.0, 98.0, 103.0]), short_cell([100.0, 99.9, 100.1]), short_cell([2.0, 1.0, 4.0], lambda x: 8 / x)
    ('100 ±2 %', '100', '4.00 ±75 %')
    """
    if not values:
        return ""
    middle, *ends = [scale(x) if callable(scale) else x * scale for x in values]
    percent = round(50 * (max(ends) - min(ends)) / middle) if ends else 0
    return number(middle) + (f" ±{percent} %" if percent else "")


def table(head, rows):
    """A table without the columns in which no row has anything.

    >>> print(table(["a", "b", "c"], [["1", "", "2"], ["3", "", ""]]))
    | a | c |
    |---|---|
    | 1 | 2 |
    | 3 |  |
    """
    columns = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    lines = [[head[i] for i in columns], *([row[i] for i in columns] for row in rows)]
    lines = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def grid(title, files, cells_of):
    """A table with a column for each length; `cells_of` gives lines of a file: what its name gets, and cells by length."""
    lines = [(data["model"] + suffix, cells) for data in files for suffix, cells in cells_of(data) if cells]
    lengths = sorted({length for _, cells in lines for length in cells})
    if not lengths:
        return []
    rows = [[name, *(cells.get(length, "") for length in lengths)] for name, cells in lines]
    return [title + "\n\n" + table(["", *(f"{length:,}" for length in lengths)], rows)]


def decode_table(files):
    """What a token costs after the first context, and the other program beside it."""
    rows = []
    for data in files:
        for row in rows_of(data, "decode")[:1]:
            seconds = row["seconds"][0] / row["n_tokens"]
            read = row["step_bytes"] / seconds
            share = f"{100 * read / data['bandwidth']:.0f} %" if "bandwidth" in data else ""
            theirs = row.get("vs_tokens_per_second")
            ratio = f"{speed(row)(row['seconds'][0]) / theirs[0]:.2f}" if theirs else ""
            rows.append([data["model"], f"{row['n_context']:,}", f"{1e6 * seconds:,.1f}", cell(row["seconds"], speed(row)),
                         f"{row['step_bytes'] / 1e6:,.0f}", number(read / 1e9), share, cell(theirs), ratio])
    head = ["", "context", "us/token", "tokens/s", "MB/token", "GB/s read", "of the bandwidth", "llama-bench, tokens/s", "ratio"]
    return ["Decoding:\n\n" + table(head, rows)] if rows else []


def load_table(files):
    rows = []
    for data in files:
        load, first = data.get("load", {}), data.get("first_load", {})
        steps = load if "weights" in load else first
        rows.append([data["model"], f"{data['tensor_bytes'] / 1e9:,.2f}", cell([first["seconds"]] if first else None, 1e3),
                     cell(load.get("seconds"), 1e3), cell(load.get("bytes_per_second"), 1e-9),
                     *(cell([steps[step]] if steps else None, 1e3) for step in STEPS)])
    head = ["", "GB of tensors", "first load, ms", "later, ms", "GB/s", *(f"{step}, ms" for step in STEPS)]
    found = any("load" in data or "first_load" in data for data in files)
    title = "Loading; the steps are those of later loads, and on a GPU the tokenizer's lies beside others:\n\n"
    return [title + table(head, rows)] if found else []


def file_table(files):
    rows = []
    for data in files:
        shares = {kind: 100 * n / data["tensor_bytes"] for kind, n in data["type_bytes"].items()}
        kinds = sorted(((share, kind) for kind, share in shares.items() if share > 0.5), reverse=True)
        kinds = ", ".join(f"{kind} {share:.0f} %" for share, kind in kinds)
        memory = data.get("memory_bytes", {})
        rows.append([data["model"], data["architecture"], f"{data['parameters'] / 1e9:.3f}", kinds,
                     f"{data['tensor_bytes'] / 1e6:,.1f}", *(f"{memory[key] / 1e6:,.1f}" if key in memory else ""
                                                             for key in ("weights", "cache", "workspace"))])
    head = ["", "architecture", "10^9 parameters", "types, of the bytes", "tensors, MB", "weights, MB", "cache, MB", "rest, MB"]
    return ["Files, and the memory of their device after the measurements:\n\n" + table(head, rows)]


def run_table(files):
    rows = [[data["model"], data["commit"], data["date"], f"`{data['command']}`"] for data in files]
    return ["Commands:\n\n" + table(["", "commit", "date", "command"], rows)]


def machine(files):
    """What was measured on, and how fast it reads."""
    names = sorted({data["device_name"] for data in files})
    text = ", ".join(names)
    if any(data["device"] == "cpu" for data in files):
        text += ", " + ", ".join(sorted({f"{data['n_threads']} threads" for data in files}))
    for driver in sorted({data["driver"] for data in files if "driver" in data}):
        text += f", driver {driver}"
    bandwidths = sorted(data["bandwidth"] / 1e9 for data in files if "bandwidth" in data)
    if bandwidths:
        ends = [number(bandwidths[0]), number(bandwidths[-1])]
        text += f"; memory is read at {ends[0] if ends[0] == ends[1] else ' to '.join(ends)} GB/s"
    rivals = sorted({f"`{data['vs']['command']}` (build {data['vs']['build']})" for data in files if "vs" in data})
    return text + "." + "".join(f"\nBeside it, in turn: {rival}." for rival in rivals) + "".join(
        f"\n{note}" for note in sorted({data["note"] for data in files if "note" in data}))


def by_length(kind, length, cells):
    """Lines of a grid: kigo's, and the other program's."""
    def lines(data):
        rows = rows_of(data, kind)
        theirs = {row[length]: short_cell(row["vs_tokens_per_second"]) for row in rows if "vs_tokens_per_second" in row}
        return [("", {row[length]: cells(row) for row in rows}), (", llama-bench", theirs)]
    return lines


def prefill_cell(row):
    return f"{short_cell(row['seconds'], speed(row))}; {number(row['flop'] / row['seconds'][0] / 1e12)}"


def tokens_cell(row):
    return short_cell(row["seconds"], speed(row))


def block(folder, files):
    """The tables and plots of a machine."""
    parts = [machine(files)]
    parts += [f"![{plot.title}](benchmarks/{folder}/{name}.svg)" for name, plot in PLOTS.items() if plot.lines(files)]
    parts += decode_table(files)
    if any(len(rows_of(data, "decode")) > 1 for data in files):
        parts += grid("Tokens per second one by one after a context of so many tokens:", files,
                      by_length("decode", "n_context", tokens_cell))
    parts += grid("Prefill of prompts of so many tokens, tokens per second; TFLOP/s of its matrices:", files,
                  by_length("prefill", "n_tokens", prefill_cell))
    parts += grid("Time to the first token of prompts of so many tokens, ms:", files,
                  lambda data: [("", {n: short_cell(seconds, 1e3) for n, seconds in first_tokens(data).items()})])
    parts += grid("Tokens per second of so many sequences together:", files, by_length("batch", "n_sequences", tokens_cell))
    parts += load_table(files) + file_table(files) + run_table(files)
    return "\n\n".join(parts)


def machines():
    """The data files of each folder, by name, the smallest first."""
    found = {}
    for path in sorted(DATA.glob("*/*.json")):
        found.setdefault(path.parent.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    for files in found.values():
        files.sort(key=lambda data: (data["parameters"], -data["tensor_bytes"]))
    return found


def page_with(text, blocks):
    """The page with these blocks.

    >>> page_with("a\\n<!-- tables: x -->\\nold\\n<!-- end -->\\nb\\n", {"x": "new"})
    'a\\n<!-- tables: x -->\\n\\nnew\\n\\n<!-- end -->\\nb\\n'
    """
    for folder, made in blocks.items():
        begin = f"{BEGIN}{folder} -->"
        before, found, after = text.partition(begin)
        old, ended, after = after.partition(END)
        if not found or not ended or BEGIN in old:
            sys.exit(f"make_benchmarks: {PAGE.name} has no lines {begin} and {END}: add them where the tables shall be")
        text = f"{before}{begin}\n\n{made}\n\n{END}{after}"
    if text.count(BEGIN) != len(blocks):
        expected = f"expected one for each of {', '.join(blocks)}"
        sys.exit(f"make_benchmarks: {PAGE.name} has {text.count(BEGIN)} lines that begin with {BEGIN}, {expected}")
    return text


def check():
    """Whether the page and the plots are those of the data; prints what is not."""
    modules = (sys.modules[__name__], benchmark_data, benchmark_series)
    failed = [module.__name__ for module in modules if doctest.testmod(module).failed]
    wrong = [f"a function of {name} does not do what its examples say" for name in failed]
    found = machines()
    text = PAGE.read_text(encoding="utf-8")
    if page_with(text, {folder: block(folder, files) for folder, files in found.items()}) != text:
        wrong.append(f"the tables of {PAGE.name} are not those of the data")
    for folder, files in found.items():
        for name, plot in PLOTS.items():
            path = DATA / folder / f"{name}.svg"
            if plot.lines(files) and not (path.exists() and plot.digest(files) in path.read_text(encoding="utf-8")):
                wrong.append(f"{path.relative_to(ROOT)} is not that of the data")
    for message in wrong:
        print(f"make_benchmarks: {message}; run make benchmark-docs", file=sys.stderr)
    return 1 if wrong else 0


def add(folder, paths):
    (DATA / folder).mkdir(parents=True, exist_ok=True)
    for path in paths:
        data = condensed(json.loads(Path(path).read_text(encoding="utf-8")))
        kept = DATA / folder / f"{data['model']}.json"
        kept.write_text(dumped(data), encoding="utf-8")
        print(f"wrote {kept.relative_to(ROOT)}")


def make():
    import benchmark_plots

    found = machines()
    for folder, files in found.items():
        for name, plot in PLOTS.items():
            path = DATA / folder / f"{name}.svg"
            path.unlink(missing_ok=True)
            if plot.lines(files):
                path.write_text(benchmark_plots.svg(name, plot, files), encoding="utf-8")
    blocks = {folder: block(folder, files) for folder, files in found.items()}
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} and the plots of {', '.join(found)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("add", nargs="*", metavar="add FOLDER FILE")
    args = parser.parse_args()
    if args.check:
        return check()
    if not args.add:
        return make()
    if args.add[0] != "add" or len(args.add) < 3:
        parser.error("expected add FOLDER FILE...")
    return add(args.add[1], args.add[2:])


if __name__ == "__main__":
    sys.exit(main())
