"""The plots of docs/benchmarks.md: what each shows, and where things stand in it. benchmark_plots.py draws them."""

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Callable, Optional

from benchmark_data import first_tokens, rows_of, speed


@dataclass
class Line:
    """Points of one file in a plot."""

    label: str
    points: list
    is_rival: bool = False


@dataclass
class Plot:
    """What a plot shows: points of a data file, and those of the other program."""

    title: str
    x: str
    y: str
    points: Callable
    rivals: Optional[Callable] = None
    # Whether points say something without a line through them.
    is_cloud: bool = False

    def lines(self, files):
        """What there is to draw; nothing where it would not be a picture."""
        lines = [Line(data["model"], sorted(self.points(data))) for data in files]
        lines += [Line(data["model"], sorted(self.rivals(data)), True) for data in files if self.rivals]
        lines = [line for line in lines if line.points]
        counts = [len(line.points) for line in lines]
        n_points = sum(counts) if self.is_cloud else max(counts, default=0)
        return lines if n_points > 1 else []

    def digest(self, files):
        """What tells this picture from one of other data."""
        ceilings = sorted(data["bandwidth"] for data in files if "bandwidth" in data)
        drawn = [self.title, self.x, self.y, ceilings, [[line.label, line.points, line.is_rival] for line in self.lines(files)]]
        return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]


def decode_points(data):
    return [(row["step_bytes"] / 1e6, 1e6 * row["seconds"][0] / row["n_tokens"]) for row in rows_of(data, "decode")]


def context_points(data):
    return [(row["n_context"], speed(row)(row["seconds"][0])) for row in rows_of(data, "decode")]


def context_rivals(data):
    rows = [row for row in rows_of(data, "decode") if "vs_tokens_per_second" in row]
    return [(row["n_context"], row["vs_tokens_per_second"][0]) for row in rows]


def prefill_points(data):
    return [(row["n_tokens"], row["flop"] / row["seconds"][0] / 1e12) for row in rows_of(data, "prefill")]


def prefill_rivals(data):
    rows = [row for row in rows_of(data, "prefill") if "vs_tokens_per_second" in row]
    return [(row["n_tokens"], row["flop"] / row["n_tokens"] * row["vs_tokens_per_second"][0] / 1e12) for row in rows]


def load_points(data):
    return [(data["tensor_bytes"] / 1e9, data["load"]["bytes_per_second"][0] / 1e9)] if "load" in data else []


def first_load_points(data):
    first = data.get("first_load")
    return [(data["tensor_bytes"] / 1e9, data["tensor_bytes"] / first["seconds"] / 1e9)] if first else []


def first_token_points(data):
    return [(n, 1e3 * seconds[0]) for n, seconds in first_tokens(data).items()]


PLOTS = {
    "decode": Plot("Time of a token over what it reads", "MB read for a token", "us for a token", decode_points, is_cloud=True),
    "context": Plot("Decoding over the context", "tokens of context", "tokens per second", context_points, context_rivals),
    "prefill": Plot("Prefill over the length of the prompt", "tokens of the prompt", "TFLOP/s", prefill_points, prefill_rivals),
    "load": Plot("Loading over the size of the file", "GB of tensors", "GB/s", load_points, is_cloud=True),
    "first-load": Plot("The first load of a process over the size of the file", "GB of tensors", "GB/s", first_load_points, is_cloud=True),
    "first-token": Plot("Time to the first token", "tokens of the prompt", "ms", first_token_points),
}


def is_wide(values):
    """Whether values want a logarithmic axis.

    >>> is_wide([1, 9]), is_wide([1, 3])
    (True, False)
    """
    return max(values) > 5 * min(values)


def limits(values, log):
    """The ends of an axis: some room around the values; from 0 where it is not logarithmic.

    >>> limits([2, 8], False), [round(x, 2) for x in limits([10, 1000], True)]
    ((0, 8.8), [7.07, 1414.21])
    """
    low, high = min(values), max(values)
    return (low / 2**0.5, high * 2**0.5) if log else (0, high * 1.1)


def apart(places, gap):
    """Places moved so that each two are at least `gap` apart, in their order, and stay between 0 and 1 if there is room.

    >>> [round(y, 2) for y in apart([0.5, 0.5, 0.9], 0.1)]
    [0.45, 0.55, 0.9]
    >>> [round(y, 2) for y in apart([0.75, 1.0, 0.99, 0.98], 0.1)]
    [0.7, 1.0, 0.9, 0.8]
    >>> [round(y, 2) for y in apart([-0.2, 0.0], 0.1)]
    [0.0, 0.1]
    """
    def inside(middle, n):
        half = gap * (n - 1) / 2
        return max(half, min(middle, 1 - half))

    groups = []
    for index in sorted(range(len(places)), key=lambda i: places[i]):
        groups.append([inside(places[index], 1), [index]])
        # Groups that touch become one, around the middle of both.
        while len(groups) > 1:
            (a, left), (b, right) = groups[-2:]
            if b - a >= gap * (len(left) + len(right)) / 2 - 1e-9:
                break
            middle = (a * len(left) + b * len(right)) / (len(left) + len(right))
            groups[-2:] = [[inside(middle, len(left) + len(right)), left + right]]
    moved = [0.0] * len(places)
    for middle, members in groups:
        for k, index in enumerate(members):
            moved[index] = middle + gap * (k - (len(members) - 1) / 2)
    return moved


def place(value, ends, log):
    """Where a value stands between the ends of its axis, from 0 to 1."""
    a, b, v = (math.log(x) for x in (*ends, value)) if log else (*ends, value)
    return (v - a) / (b - a)
