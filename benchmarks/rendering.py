"""Measure the cost of rendering replies as Markdown on a terminal, for long replies and all kinds of blocks.

Needs `cerebrum pull starter`. Usage: python benchmarks/rendering.py [--runs N] [--tokens N]

First, a chat on a terminal of 100 columns and 40 rows alternates with the same chat written to the null device with
--no-markdown, each in its own process: the time from the first token until the last is drawn. Then texts of several
kinds are fed to the terminal's sink at the speed of decode, because the cost depends on it: CPU seconds of drawing,
including the import of the renderer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from chat import close_chat, open_chat
from harness import Row, attach_to, in_subprocess, medians, pseudo_terminal, record

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import Event, SequenceId, TokenEvent
from cerebrum_cli.formats.reply_text import ReplyRules, ReplyText
from cerebrum_cli.terminal.sinks import AnswerSink, ReplyDisplay
from cerebrum_cli.terminal.streams import standard_streams

PROMPT = (
    "Write a very long and detailed guide to growing apples, with a heading, a list and an example in each chapter."
)
COLUMNS, ROWS = 100, 40
TEXTS = {
    "a list": "{0}. The **{0}th** thing to know is `item_{0}`, and *why* it is here.\n",
    "a code block": "def step_{0}(value: int) -> int:\n    return value * {0}  # the {0}th of many\n\n\n",
    "a paragraph": "This is sentence {0} of a paragraph that never ends, with *emphasis* and `code_{0}` in it. ",
    "a table": "| row {0} | **{0}** | `value_{0}` | what there is to say of it |\n",
    "a mixture": "## Part {0}\n\nA paragraph with **weight** and `code`, of some length, so that it is more than a"
    " row of the terminal it is shown on.\n\n- one\n- two\n  - two and a half\n\n```python\nprint({0})\n```\n\n> quoted"
    "\n\n| a | b |\n|---|---|\n| {0} | x |\n\n",
}
PREFIXES = {"a code block": "```python\n", "a table": "| row | number | value | remark |\n|---|---|---|---|\n"}


def main() -> None:
    """Run all measurements and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2000, help="tokens to draw [default: 2000]")
    options = parser.parse_args()
    record(rendering_rows(options.tokens, options.runs))


def rendering_rows(tokens: int, runs: int) -> list[Row]:
    """Compare a long reply that is drawn with one that is discarded, then measure drawing each kind of text."""

    def pair() -> tuple[ReplyTimes, ReplyTimes]:
        with tempfile.TemporaryDirectory() as name, pseudo_terminal(COLUMNS, ROWS) as device:
            terminal_times = in_subprocess(draw_reply, Path(name), tokens, device)
            return terminal_times, in_subprocess(draw_reply, Path(name), tokens, os.devnull)

    pair()
    pairs = [pair() for _ in range(runs)]
    shown_rate, plain_rate, ratio = medians([(tokens / ours.seconds, tokens / peer.seconds) for ours, peer in pairs])
    shown_growth, plain_growth, growth = medians([(ours.growth, peer.growth) for ours, peer in pairs])
    quarter = tokens // 4
    growth_label = (
        f"time of tokens {3 * quarter} to {4 * quarter} over {quarter} to {2 * quarter}, Markdown / --no-markdown"
    )
    return [
        Row(
            f"decode of {tokens} tokens, Markdown on a terminal / --no-markdown to the null device",
            f"{shown_rate:.1f} tok/s",
            f"{plain_rate:.1f} tok/s",
            ratio,
            ">= 0.95",
        ),
        Row(growth_label, f"{shown_growth:.3f}", f"{plain_growth:.3f}", growth, "<= 1.05"),
        *(drawing_row(kind, tokens, tokens / plain_rate, runs) for kind in TEXTS),
    ]


class ReplyTimes(NamedTuple):
    """Seconds from a reply's first token until all is drawn, and the ratio of its last quarter to its second."""

    seconds: float
    growth: float


def draw_reply(directory: Path, tokens: int, device: str) -> ReplyTimes:
    """Draw a long reply of the starter model on a device; RuntimeError if the reply ends early."""
    attach_to(device)
    is_markdown = device != os.devnull
    chat = open_chat(
        directory, model="starter", max_tokens=tokens, temperature=0, loop_check=False, markdown=is_markdown
    )
    times: list[float] = []
    try:
        events = record_times(chat.send(PROMPT), times)
        display = ReplyDisplay(standard_streams())
        display.show_reply(events, chat.loaded, shows_reasoning=False, markdown=is_markdown)
        end = time.perf_counter()
    finally:
        close_chat(chat)
    if len(times) != tokens:
        raise RuntimeError(f"the model stopped after {len(times)} tokens")
    quarter = tokens // 4
    second, last = times[2 * quarter - 1] - times[quarter - 1], end - times[3 * quarter - 1]
    return ReplyTimes(end - times[0], last / second)


def record_times(events: Generator[Event, None, None], times: list[float]) -> Generator[Event, None, None]:
    """Yield events and record the time of each token."""
    try:
        for event in events:
            if isinstance(event, TokenEvent) and event.tokens:
                times.append(time.perf_counter())
            yield event
    finally:
        events.close()


def drawing_row(kind: str, tokens: int, seconds: float, runs: int) -> Row:
    """Compare the CPU seconds of drawing a text with the seconds of decoding as many tokens."""
    pieces = in_subprocess(split_text, kind, tokens)
    with pseudo_terminal(COLUMNS, ROWS) as device:
        unpaced_s = in_subprocess(time_drawing, pieces, 0.0, device)
        cpu_s = statistics.median(in_subprocess(time_drawing, pieces, seconds / tokens, device) for _ in range(runs))
    print(f"{kind}, {tokens} tokens without pauses: {unpaced_s:.3f} s")
    label = f"drawing {tokens} tokens of {kind} / decoding as many"
    return Row(label, f"{cpu_s:.3f} s of CPU", f"{seconds:.2f} s", cpu_s / seconds, "<= 0.05")


def split_text(kind: str, tokens: int) -> list[str]:
    """Text of one kind, split into tokens of the starter model."""
    with tempfile.TemporaryDirectory() as name:
        chat = open_chat(Path(name), model="starter", cache_gb=0)
        try:
            for _ in chat.loaded.load():
                pass
            text = PREFIXES.get(kind, "") + "".join(map(TEXTS[kind].format, islice(count(1), tokens)))
            vocabulary, reader = chat.loaded.engine.vocabulary, ReplyText(ReplyRules())
            ids = vocabulary.tokenize((Text(text),))[:tokens]
            return ["".join(text for _, text in reader.feed(vocabulary.piece(token))) for token in ids]
        finally:
            close_chat(chat)


def time_drawing(pieces: Sequence[str], interval: float, device: str) -> float:
    """Draw a text on a terminal, one piece per `interval` seconds; return the CPU seconds spent."""
    attach_to(device)
    sink = AnswerSink(standard_streams(), markdown=True)
    start, cpu_s = time.perf_counter(), 0.0
    for index, piece in enumerate(pieces):
        time.sleep(max(0.0, start + index * interval - time.perf_counter()))
        drawing_start = time.thread_time()
        sink.emit(TokenEvent(SequenceId(0), piece))
        cpu_s += time.thread_time() - drawing_start
    drawing_start = time.thread_time()
    sink.close()
    return cpu_s + time.thread_time() - drawing_start


if __name__ == "__main__":
    main()
