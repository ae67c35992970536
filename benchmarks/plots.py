"""Plot decode throughput by parallel sequences and prefill time by prompt length, against llama-batched-bench.

Needs `make peers`, `cerebrum pull starter` and matplotlib: pip install --group bench.
Usage: python benchmarks/plots.py [--only PART] [--runs N] [--max-sequences N] [--max-prompt N] [--tokens N] [--out DIR]

Each part is a plot beside RESULTS.md, and some of its points are rows there. The starter model gets token ids, on two
threads; each sequence has its own KV cache, just long enough. A run covers all points and measures ours and the peer
in alternation, each in its own process; the first point is also measured once as a warm-up. The numbers of evaluated
and generated tokens are checked.

throughput   One prompt of PROMPT_LENGTH tokens is evaluated and continued by 1, 2, 4, ... MAX_SEQUENCES parallel
             sequences for TOKENS steps, like one row of `cerebrum batch --parallel N --votes N --temperature 0
             --ignore-eos`. Tokens of all sequences divided by the seconds from the first to the last of them, including
             sampling and copying the prompt to the other sequences. The peer also shares its prompt (-pps), uses random
             tokens, and does not sample.
prompt       Seconds until the first token of a prompt is sampled, as in `cerebrum ask`, after a warm-up of 16 tokens,
             which the peer does by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from answering import THREADS, benchmark_settings, loaded_model, model_path
from harness import RESULTS, Row, in_subprocess, machine, medians, record
from server import batched_bench

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import FinishEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import ContextOptions, Request
from cerebrum_cli.replies.interface import Model

PARTS = ("throughput", "prompt")
PROMPT_LENGTH, TOKENS, MAX_SEQUENCES = 128, 64, 64  # 192 tokens: single rows are not padded before position 256
MIN_PROMPT, MAX_PROMPT = 64, 2048
WARM_UP = 16
RECORDED_COUNTS, RECORDED_LENGTHS = (1, 8, 32), (128, 1024)
LINE = "Apple {} of the orchard was picked on day {} and weighed {} grams. "

Measure = Callable[[int], float]


class Point(NamedTuple):
    """Medians of both sides and the median ratio at one number of sequences or prompt length."""

    x: int
    ours: float
    peer: float
    ratio: float


class Plot(NamedTuple):
    """File name, title and axes of a plot; the x axis is always logarithmic."""

    name: str
    title: str
    x_label: str
    y_label: str
    log_y: bool


def main() -> None:
    """Measure both parts or one; draw each, and record its rows unless --out is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=3, help="[default: 3]")
    parser.add_argument("--max-sequences", type=int, default=MAX_SEQUENCES, help=f"[default: {MAX_SEQUENCES}]")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"tokens per sequence [default: {TOKENS}]")
    parser.add_argument("--max-prompt", type=int, default=MAX_PROMPT, help=f"prompt tokens [default: {MAX_PROMPT}]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the plots there, and do not write to RESULTS.md")
    options = parser.parse_args()
    directory = options.out or RESULTS.parent
    directory.mkdir(parents=True, exist_ok=True)
    model = model_path("starter")
    if options.only != "prompt":
        points = throughput_points(model, doublings(1, options.max_sequences), options.tokens, options.runs)
        title = f"Decode throughput of {model.stem}, {options.tokens} tokens after a prompt of {PROMPT_LENGTH}"
        plot = Plot("throughput", title, "parallel sequences", "decode throughput (tokens/s)", log_y=False)
        draw_plot(plot, points, directory)
        record(
            [throughput_row(point, options.tokens) for point in points if point.x in RECORDED_COUNTS],
            dry_run=bool(options.out),
        )
    if options.only != "throughput":
        points = prompt_points(model, doublings(MIN_PROMPT, options.max_prompt), options.runs)
        title = f"Prefill time of {model.stem}"
        plot = Plot("prompt_time", title, "prompt (tokens)", "time to the first token (s)", log_y=True)
        draw_plot(plot, points, directory)
        record([prompt_row(point) for point in points if point.x in RECORDED_LENGTHS], dry_run=bool(options.out))


def doublings(first: int, last: int) -> list[int]:
    """Doublings of `first`, up to `last`."""
    return [first * 2**power for power in range((last // first).bit_length())]


def measure_points(ours: Measure, peer: Measure, values: Sequence[int], runs: int, unit: str) -> list[Point]:
    """Measure all points in each run, and print their medians."""
    ours(values[0]), peer(values[0])
    pairs: dict[int, list[tuple[float, float]]] = {value: [] for value in values}
    for _ in range(runs):
        for value in values:
            pairs[value].append((ours(value), peer(value)))
    points = [Point(value, *medians(pairs[value])) for value in values]
    for point in points:
        print(f"{point.x}: {point.ours:.3f} {unit}, llama-batched-bench {point.peer:.3f}, ratio {point.ratio:.3f}")
    return points


# Parallel sequences.


def throughput_points(model: Path, counts: Sequence[int], tokens: int, runs: int) -> list[Point]:
    """Measure tokens per second by number of sequences."""

    def peer(count: int) -> float:
        decode_s = batched_bench(model, PROMPT_LENGTH, tokens, count, THREADS, shared_prompt=True).decode_s
        return count * tokens / decode_s

    return measure_points(lambda count: in_subprocess(decode_rate, model, count, tokens), peer, counts, runs, "tok/s")


def decode_rate(model: Path, count: int, tokens: int) -> float:
    """Tokens per second of `count` parallel sequences; to be called in a subprocess."""
    settings = benchmark_settings({"max_tokens": tokens + 1, "temperature": 0.0})  # the prompt yields the first
    with loaded_model(str(model), settings, ContextOptions(slots=count, batch_invariant=True)) as loaded:
        finishes = generate(loaded, PROMPT_LENGTH, settings, count)
        assert isinstance(loaded.engine, LocalEngine)
        slots = loaded.engine.backend.slots
    counts = [(finish.cached_tokens, finish.timings.decode_steps) for finish in finishes]
    if slots < count or sorted(counts) != [(0, tokens)] + [(PROMPT_LENGTH, tokens)] * (count - 1):
        raise RuntimeError(f"unexpected token counts with {slots} slots: {counts}")
    return count * tokens / max(finish.timings.decode_s for finish in finishes)


def generate(loaded: Model, length: int, settings: Settings, count: int = 1) -> list[FinishEvent]:
    """Generate `count` replies to a prompt of `length` tokens; return their finish events."""
    lines = (LINE.format(length + index, index, index % 97) for index in range(length))
    ids = loaded.engine.vocabulary.tokenize((Text("".join(lines)),))
    end = ids[-length:]  # so that prompts share no prefix
    request = Request(end, settings, Ask(n=count, ignore_eos=True))
    with closing(loaded.engine.complete([request])) as events:
        return [event for event in events if isinstance(event, FinishEvent)]


def throughput_row(point: Point, tokens: int) -> Row:
    """Row of a point."""
    sequences = "1 sequence" if point.x == 1 else f"{point.x} sequences"
    label = f"decode of {sequences}, {tokens} tokens each, starter, llama-batched-bench"
    return Row(label, f"{point.ours:.1f} tok/s", f"{point.peer:.1f} tok/s", point.ratio, ">= 0.95")


# Prompts.


def prompt_points(model: Path, lengths: Sequence[int], runs: int) -> list[Point]:
    """Measure the seconds of prefill by prompt length."""

    def peer(length: int) -> float:
        return batched_bench(model, length, 1, 1, THREADS).prefill_s

    return measure_points(lambda length: in_subprocess(prefill_time, model, length), peer, lengths, runs, "s")


def prefill_time(model: Path, length: int) -> float:
    """Seconds of prefill for a prompt; to be called in a subprocess."""
    settings = benchmark_settings({"max_tokens": 1, "temperature": 0.0})
    with loaded_model(str(model), settings, ContextOptions()) as loaded:
        generate(loaded, WARM_UP, settings)
        (finish,) = generate(loaded, length, settings)
    if finish.timings.prefill_tokens != length:
        raise RuntimeError(f"{finish.timings.prefill_tokens} tokens were evaluated, not {length}")
    return finish.timings.prefill_s


def prompt_row(point: Point) -> Row:
    """Row of a point."""
    label = f"prefill of {point.x} tokens, starter, llama-batched-bench"
    return Row(label, f"{point.ours:.3f} s", f"{point.peer:.3f} s", point.ratio, "<= 1.05")


# Plots.


def draw_plot(plot: Plot, points: Sequence[Point], directory: Path) -> None:
    """Write a plot of both sides, with their ratio below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    x, ratios = [point.x for point in points], [point.ratio for point in points]
    upper.plot(x, [point.ours for point in points], "o-", color="tab:blue", label="cerebrum")
    upper.plot(x, [point.peer for point in points], "s--", color="tab:orange", label="llama-batched-bench")
    upper.set_ylabel(plot.y_label)
    if plot.log_y:
        upper.set_yscale("log", base=2)
        upper.yaxis.set_major_formatter("{x:g}")
    else:
        upper.set_ylim(bottom=0)
    upper.legend()
    lower.plot(x, ratios, "o-", color="tab:blue")
    lower.axhline(1, color="tab:orange", linestyle="--")
    lower.set_ylim(min(0.8, *ratios) - 0.05, max(1.2, *ratios) + 0.05)
    lower.set_ylabel("ratio, ours / peer")
    format_x_axis(lower, plot.x_label, x)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    upper.set_title(f"{plot.title}\n{machine()}, {THREADS} threads, {date.today()}", fontsize="medium")
    path = directory / f"{plot.name}.png"
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def format_x_axis(axes: Any, label: str, x: Sequence[int]) -> None:
    """Logarithmic x axis with a tick at each point, labeled as a plain number."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(value) for value in x])
    axes.minorticks_off()
    axes.set_xlabel(label)


if __name__ == "__main__":
    main()
