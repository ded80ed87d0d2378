"""Draw the plots of make_benchmarks.py as SVG. `make benchmark-docs` installs matplotlib.

The same data gives the same bytes: no date, no random names. Colours are variables of the picture's own style sheet, which
follows the reader's choice of light or dark; the paper is part of the picture, so that it is readable on any page.
"""

import io

import matplotlib
import matplotlib.pyplot as plt
from benchmark_series import apart, is_wide, limits, place
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter, NullLocator

# What stands for a colour in the drawing, its name in the style sheet, and the colour on light and on dark paper.
INKS = [
    ("#010203", "ink", "#1c1b1a", "#e6e2da"),
    ("#020304", "soft", "#6b6862", "#a09b91"),
    ("#030405", "line", "#dcd7cd", "#3c3934"),
    ("#040506", "paper", "#fdfcfa", "#191817"),
    ("#110001", "c0", "#1f6fb4", "#6cb2ec"),
    ("#110002", "c1", "#b5541c", "#f0935a"),
    ("#110003", "c2", "#2b7d46", "#6cc68a"),
    ("#110004", "c3", "#8a4bb0", "#c894e8"),
    ("#110005", "c4", "#8c6d00", "#d9b84a"),
    ("#110006", "c5", "#b03060", "#f08aae"),
    ("#110007", "c6", "#147a7a", "#5cc7c7"),
    ("#110008", "c7", "#5a5f66", "#b3b9c2"),
    ("#110009", "c8", "#7a4a2c", "#c99a78"),
]
INK, SOFT, LINE, PAPER = (ink[0] for ink in INKS[:4])
SERIES = [ink[0] for ink in INKS[4:]]
STYLE = {
    "svg.hashsalt": "kigo", "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT, "grid.color": LINE,
    "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.6, "lines.markersize": 4.5,
}
LABEL_GAP = 0.052


def log_ticks(axis, values, base):
    """Plain numbers on a logarithmic axis: for lengths they themselves where few, else powers of 4; for others of 10."""
    few = sorted(set(values))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if base == 2:
        axis.set_ticks(few if len(few) <= 8 else [4**i for i in range(16) if few[0] <= 4**i <= few[-1]])
    else:
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if max(few) < 200 * min(few) else (1,)))
    axis.set_major_formatter(FuncFormatter(plain))


def plain(x, _):
    return f"{x:,.0f}" if x >= 10 else f"{x:g}"


def svg(name, plot, files):
    """The text of one picture."""
    lines = plot.lines(files)
    xs, ys = ([point[i] for line in lines for point in line.points] for i in (0, 1))
    # A context is read from 0 on, prompts differ by factors.
    log_x = {"context": False, "prefill": True, "first-token": True}.get(name, is_wide(xs))
    log_y = is_wide(ys)
    x_ends, y_ends = limits(xs, log_x), limits(ys, log_y)
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.2))
        figure.subplots_adjust(left=0.12, right=0.74, top=0.88, bottom=0.13)
        if log_x:
            axes.set_xscale("log", base=2 if not plot.is_cloud else 10)
        if log_y:
            axes.set_yscale("log")
        axes.set_xlim(*x_ends)
        if name == "decode":
            y_ends = ceiling(axes, files, x_ends, y_ends, log_y)
        axes.set_ylim(*y_ends)
        axes.grid(True, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(plot.x)
        axes.set_ylabel(plot.y)
        figure.text(0.12, 0.94, plot.title, fontsize=11)
        if any(line.is_rival for line in lines):
            figure.text(0.98, 0.94, "kigo ——   llama-bench - - -", color=SOFT, ha="right")
        draw(axes, plot, lines, (y_ends, log_y))
        for axis, log, values in ((axes.xaxis, log_x, xs), (axes.yaxis, log_y, ys)):
            if log:
                log_ticks(axis, values, 2 if axis is axes.xaxis and not plot.is_cloud else 10)
            else:
                axis.set_major_formatter(FuncFormatter(plain))
                if axis is axes.xaxis and name == "context" and max(values) >= 8192:
                    axis.set_major_locator(MultipleLocator(8192))
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Description": f"data {plot.digest(files)}"})
        plt.close(figure)
    return inked(out.getvalue())


def ceiling(axes, files, x_ends, y_ends, log_y):
    """Draws the time in which memory alone is read; returns ends of the y axis that show it."""
    bandwidths = [data["bandwidth"] for data in files if "bandwidth" in data]
    if not bandwidths:
        return y_ends
    # MB over bytes per second are microseconds.
    at = [1e12 * x / max(bandwidths) for x in x_ends if x > 0]
    xs = [x_ends[0] + (x_ends[1] - x_ends[0]) * i / 64 for i in range(65)]
    axes.plot(xs, [1e12 * x / max(bandwidths) for x in xs], color=SOFT, linewidth=1, linestyle=(0, (1, 1.5)))
    axes.annotate(f"{max(bandwidths) / 1e9:,.0f} GB/s, as the device reads", (x_ends[1], at[-1]), (-4, 4), color=SOFT,
                  textcoords="offset points", ha="right", va="bottom", fontsize=8)
    return (min(y_ends[0], at[0]), y_ends[1]) if log_y else y_ends


def draw(axes, plot, lines, y_axis):
    """Draws lines or points, each with its name at its right end."""
    colours = {}
    for line in lines:
        colours.setdefault(line.label, SERIES[len(colours) % len(SERIES)])
    for line in lines:
        x, y = zip(*line.points)
        dashes = (0, (4, 2)) if line.is_rival else "-"
        axes.plot(x, y, color=colours[line.label], marker="o", linestyle=dashes, linewidth=1 if plot.is_cloud else 1.6,
                  markerfacecolor=PAPER if line.is_rival else colours[line.label], clip_on=False)
    named = [line for line in lines if not line.is_rival]
    wanted = [place(line.points[-1][1], *y_axis) for line in named]
    for line, at in zip(named, apart(wanted, LABEL_GAP)):
        axes.annotate(line.label, line.points[-1], (1.02, at), xycoords="data", textcoords="axes fraction", color=colours[line.label],
                      va="center", fontsize=8,
                      arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4})


def inked(text):
    """The picture with a style sheet instead of the stand-ins, and without what differs between machines."""
    for stand_in, name, light, _ in INKS:
        text = text.replace(stand_in, f"var(--{name}, {light})")
    sheets = [" ".join(f"--{ink[1]}: {ink[i]};" for ink in INKS) for i in (2, 3)]
    style = f"<style>svg {{ {sheets[0]} }} @media (prefers-color-scheme: dark) {{ svg {{ {sheets[1]} }} }}</style>"
    start = text.index("<defs>")
    text = text[:start] + style + "\n " + text[start:]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
