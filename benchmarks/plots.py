"""Tokens a second against parallel sequences, and seconds against the length of a prompt, beside llama-batched-bench.

Needs `make peers`, `cerebrum pull starter` and matplotlib: pip install --group bench.
Usage: python benchmarks/plots.py [--only PART] [--runs N] [--most N] [--longest N] [--tokens N] [--out DIR]

Each part is a picture beside RESULTS.md, and some of its points are rows there. All is asked of the starter by token
ids, on two threads; each sequence has a cache of its own, no longer than it becomes. A run goes through all points, at
each of them ours and the peer in turn, every one a process of its own; the first point is measured once more before,
and that is not counted. It is checked how many tokens were read and said.

throughput   One prompt of PROMPT tokens is read and gone on with by 1, 2, 4, ... MOST sequences at once, TOKENS steps
             each: as `cerebrum batch --parallel N --votes N --temperature 0 --ignore-eos` does it with one row. Tokens
             of all sequences over the seconds from the first of them to the last, what the engine does beside decoding
             included, as is the prompt's way into the other sequences. The peer shares its prompt likewise (-pps),
             draws its tokens at random, and samples nothing.
prompt       A prompt is read as `cerebrum ask` reads it: seconds until its first token is chosen. Before it 16 other
             tokens are, as the peer does by itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from answering import THREADS, benchmark_settings, loaded_model, model_path
from harness import RESULTS, Row, in_subprocess, machine, medians, record
from server import batched_bench

from cerebrum_cli.application.inference.loading import SINGLE, LoadedModel, Parallel
from cerebrum_cli.core.events import FinishEvent
from cerebrum_cli.core.parts import Text
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.sequence import Request

PARTS = ("throughput", "prompt")
PROMPT, TOKENS, MOST = 128, 64, 64  # 192 tokens: before the first 256 a lone row in a batch is given no company
SHORTEST, LONGEST = 64, 2048
WARM_UP = 16
RECORDED_COUNTS, RECORDED_LENGTHS = (1, 8, 32), (128, 1024)
LINE = "Apple {} of the orchard was picked on day {} and weighed {} grams. "

Measure = Callable[[int], float]


class Point(NamedTuple):
    """What was measured at one number of sequences, or one length of a prompt: medians, and the median ratio."""

    at: int
    ours: float
    peer: float
    ratio: float


class Picture(NamedTuple):
    """What a picture says of itself; `logarithmic` tells of its upright axis, the other one always is."""

    name: str
    title: str
    across: str
    upright: str
    logarithmic: bool


def main() -> None:
    """Measure both parts, or one; draw each, and record it unless it is drawn elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=3, help="[default: 3]")
    parser.add_argument("--most", type=int, default=MOST, help=f"sequences of `throughput` [default: {MOST}]")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of each of them [default: {TOKENS}]")
    parser.add_argument("--longest", type=int, default=LONGEST, help=f"prompt of `prompt` [default: {LONGEST}]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="draw there, and record nothing")
    given = parser.parse_args()
    folder = given.out or RESULTS.parent
    folder.mkdir(parents=True, exist_ok=True)
    model = model_path("starter")
    if given.only != "prompt":
        points = throughput(model, doublings(1, given.most), given.tokens, given.runs)
        draw(throughput_picture(model, given.tokens), points, folder)
        show([throughput_row(point, given.tokens) for point in points if point.at in RECORDED_COUNTS], given.out)
    if given.only != "throughput":
        points = prompt_times(model, doublings(SHORTEST, given.longest), given.runs)
        draw(prompt_picture(model), points, folder)
        show([prompt_row(point) for point in points if point.at in RECORDED_LENGTHS], given.out)


def doublings(first: int, last: int) -> list[int]:
    """Return the first number, and twice the one before as long as that is no more than the last."""
    return [first * 2**power for power in range((last // first).bit_length())]


def show(rows: Sequence[Row], elsewhere: Path | None) -> None:
    """Keep rows in the table of results, unless the picture is elsewhere."""
    if not elsewhere:
        record(rows)


def measured(ours: Measure, peer: Measure, at: Sequence[int], runs: int, unit: str) -> list[Point]:
    """Measure all points so often, one run after the other, and print each."""
    ours(at[0]), peer(at[0])
    pairs: dict[int, list[tuple[float, float]]] = {each: [] for each in at}
    for _ in range(runs):
        for each in at:
            pairs[each].append((ours(each), peer(each)))
    points = [Point(each, *medians(pairs[each])) for each in at]
    for point in points:
        print(f"{point.at}: {point.ours:.3f} {unit}, llama-batched-bench {point.peer:.3f}, ratio {point.ratio:.3f}")
    return points


# Many sequences at once.


def throughput(model: Path, counts: Sequence[int], tokens: int, runs: int) -> list[Point]:
    """Measure tokens a second of so many sequences."""

    def peer(count: int) -> float:
        said = batched_bench(model, PROMPT, tokens, count, THREADS, shared_prompt=True).decode_s
        return count * tokens / said

    return measured(lambda count: in_subprocess(said_by, model, count, tokens), peer, counts, runs, "tok/s")


def said_by(model: Path, count: int, tokens: int) -> float:
    """Return the tokens a second of so many sequences; to be called in a process of its own."""
    settings = benchmark_settings(
        {"max_tokens": tokens + 1, "temperature": 0.0}
    )  # the first is sampled from the prompt
    with loaded_model(str(model), settings, Parallel(count, batch_invariant=True)) as found:
        finishes = finishes_of(found, PROMPT, settings, count)
        at_once = found.engine.backend.slots
    done = [(finish.cached_tokens, finish.timings.decode_steps) for finish in finishes]
    if at_once < count or sorted(done) != [(0, tokens)] + [(PROMPT, tokens)] * (count - 1):
        raise RuntimeError(f"other work was done than was asked for, {at_once} at once: {done}")
    return count * tokens / max(finish.timings.decode_s for finish in finishes)


def finishes_of(found: LoadedModel, length: int, settings: Settings, count: int = 1) -> list[FinishEvent]:
    """Have a prompt of so many tokens read, and return how the replies to it ended."""
    lines = (LINE.format(length + at, at, at % 97) for at in range(length))
    ids = found.engine.tokenize((Text("".join(lines)),))[-length:]  # the last, so that no two begin alike
    request = Request(ids, settings.sampling(()), n=count, ignore_eos=True)
    return [event for event in found.engine.generate([request]) if isinstance(event, FinishEvent)]


def throughput_row(point: Point, tokens: int) -> Row:
    """Return a point as a row."""
    sequences = "1 sequence" if point.at == 1 else f"{point.at} sequences"
    what = f"decode of {sequences}, {tokens} tokens each, starter, llama-batched-bench"
    return Row(what, f"{point.ours:.1f} tok/s", f"{point.peer:.1f} tok/s", point.ratio, ">= 0.95")


def throughput_picture(model: Path, tokens: int) -> Picture:
    """Return what the picture says of itself."""
    title = f"Decode throughput of {model.stem}, {tokens} tokens after a prompt of {PROMPT}"
    return Picture("throughput", title, "parallel sequences", "decode throughput (tokens/s)", logarithmic=False)


# Prompts.


def prompt_times(model: Path, lengths: Sequence[int], runs: int) -> list[Point]:
    """Measure the seconds in which prompts of these lengths are read."""

    def peer(length: int) -> float:
        return batched_bench(model, length, 1, 1, THREADS).prefill_s

    return measured(lambda length: in_subprocess(read_in, model, length), peer, lengths, runs, "s")


def read_in(model: Path, length: int) -> float:
    """Return the seconds in which a prompt is read; to be called in a process of its own."""
    settings = benchmark_settings({"max_tokens": 1, "temperature": 0.0})
    with loaded_model(str(model), settings, SINGLE) as found:
        finishes_of(found, WARM_UP, settings)
        (finish,) = finishes_of(found, length, settings)
    if finish.timings.prefill_tokens != length:
        raise RuntimeError(f"{finish.timings.prefill_tokens} tokens were read, not {length}")
    return finish.timings.prefill_s


def prompt_row(point: Point) -> Row:
    """Return a point as a row."""
    what = f"prefill of {point.at} tokens, starter, llama-batched-bench"
    return Row(what, f"{point.ours:.3f} s", f"{point.peer:.3f} s", point.ratio, "<= 1.05")


def prompt_picture(model: Path) -> Picture:
    """Return what the picture says of itself."""
    title = f"Time to read a prompt, {model.stem}"
    return Picture("prompt_time", title, "prompt (tokens)", "time to the first token (s)", logarithmic=True)


# Pictures.


def draw(picture: Picture, points: Sequence[Point], folder: Path) -> None:
    """Draw both sides over their points, and their ratio below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    at, ratios = [point.at for point in points], [point.ratio for point in points]
    above.plot(at, [point.ours for point in points], "o-", color="tab:blue", label="cerebrum")
    above.plot(at, [point.peer for point in points], "s--", color="tab:orange", label="llama-batched-bench")
    above.set_ylabel(picture.upright)
    if picture.logarithmic:
        above.set_yscale("log", base=2)
        above.yaxis.set_major_formatter("{x:g}")
    else:
        above.set_ylim(bottom=0)
    above.legend()
    below.plot(at, ratios, "o-", color="tab:blue")
    below.axhline(1, color="tab:orange", linestyle="--")
    below.set_ylim(min(0.8, *ratios) - 0.05, max(1.2, *ratios) + 0.05)
    below.set_ylabel("ratio, ours / peer")
    furnish_across(below, picture.across, at)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    above.set_title(f"{picture.title}\n{machine()}, {THREADS} threads, {date.today()}", fontsize="medium")
    path = folder / f"{picture.name}.png"
    figure.savefig(path, dpi=120)
    print(f"drawn: {path}")


def furnish_across(axes: Any, label: str, at: Sequence[int]) -> None:
    """Give the lower axis powers of two, written as numbers."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [str(each) for each in at])
    axes.minorticks_off()
    axes.set_xlabel(label)


if __name__ == "__main__":
    main()
