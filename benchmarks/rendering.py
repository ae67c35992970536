"""Cost of drawing replies as Markdown on a terminal, for long replies and all kinds of blocks.

Needs `cerebrum pull starter`. Usage: python benchmarks/rendering.py [--runs N] [--tokens N]

First a chat on a terminal of 100 columns and 40 rows, alternating with the same chat written to the null device with
--no-markdown, each in a process of its own: the time from the first token until the last is drawn. Then texts of other
kinds, whose tokens reach the terminal's sink at the pace of decode, on which the cost depends: CPU seconds of drawing,
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

from chat import leave, led
from harness import Row, alone, medians, record, sit_at, terminal

from cerebrum_cli.core.events import Event, SequenceId, TokenEvent
from cerebrum_cli.core.parts import Text
from cerebrum_cli.engine.detokenizer import Detokenizer
from cerebrum_cli.terminal.repl.repl import Repl
from cerebrum_cli.terminal.repl.signals import Signals
from cerebrum_cli.terminal.repl.slash_commands import COMMANDS
from cerebrum_cli.terminal.sinks import MarkdownSink
from cerebrum_cli.terminal.streams import standard_streams

GUIDE = "Write a very long and detailed guide to growing apples, with a heading, a list and an example in each chapter."
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
OPENINGS = {"a code block": "```python\n", "a table": "| row | number | value | remark |\n|---|---|---|---|\n"}


def main() -> None:
    """Run all measurements and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2000, help="tokens to draw [default: 2000]")
    given = parser.parse_args()
    record(rendering(given.tokens, given.runs))


def rendering(tokens: int, runs: int) -> list[Row]:
    """Compare a long reply drawn and discarded, then measure drawing other kinds of text."""

    def pair() -> tuple[ReplyTimes, ReplyTimes]:
        with tempfile.TemporaryDirectory() as name, terminal(COLUMNS, ROWS) as device:
            return alone(draw_reply, Path(name), tokens, device), alone(draw_reply, Path(name), tokens, os.devnull)

    pair()
    pairs = [pair() for _ in range(runs)]
    shown, plain, ratio = medians([(tokens / ours.seconds, tokens / peer.seconds) for ours, peer in pairs])
    shown_growth, plain_growth, growth = medians([(ours.growth, peer.growth) for ours, peer in pairs])
    quarter = tokens // 4
    flat = f"time of tokens {3 * quarter} to {4 * quarter} over {quarter} to {2 * quarter}, Markdown / --no-markdown"
    return [
        Row(
            f"decode of {tokens} tokens, Markdown on a terminal / --no-markdown to nowhere",
            f"{shown:.1f} tok/s",
            f"{plain:.1f} tok/s",
            ratio,
            ">= 0.95",
        ),
        Row(flat, f"{shown_growth:.3f}", f"{plain_growth:.3f}", growth, "<= 1.05"),
        *(drawing(kind, tokens, tokens / plain, runs) for kind in TEXTS),
    ]


class ReplyTimes(NamedTuple):
    """Seconds from a reply's first token until all is drawn, and the ratio of its last quarter to its second."""

    seconds: float
    growth: float


def draw_reply(directory: Path, tokens: int, device: str) -> ReplyTimes:
    """Draw a long reply of the starter model on a device. Raises RuntimeError if the reply ends early."""
    sit_at(device)
    chat = led(directory, model="starter", max_tokens=tokens, cache_gb=0)
    stamps: list[float] = []
    try:
        streams = standard_streams()
        repl = Repl(chat, streams, Signals(streams), COMMANDS, no_markdown=device == os.devnull)
        repl.render(stamped(chat.send(GUIDE), stamps))
        ended = time.perf_counter()
    finally:
        leave(chat)
    if len(stamps) != tokens:
        raise RuntimeError(f"the model stopped after {len(stamps)} tokens")
    quarter = tokens // 4
    second, last = stamps[2 * quarter - 1] - stamps[quarter - 1], ended - stamps[3 * quarter - 1]
    return ReplyTimes(ended - stamps[0], last / second)


def stamped(events: Generator[Event, None, None], stamps: list[float]) -> Generator[Event, None, None]:
    """Yield events and record the time of each token."""
    try:
        for event in events:
            if isinstance(event, TokenEvent) and event.token is not None:
                stamps.append(time.perf_counter())
            yield event
    finally:
        events.close()


def drawing(kind: str, tokens: int, seconds: float, runs: int) -> Row:
    """Compare the CPU seconds of drawing a text with the seconds of decoding as many tokens."""
    pieces = alone(pieces_of, kind, tokens)
    with terminal(COLUMNS, ROWS) as device:
        unpaced = alone(drawn, pieces, 0.0, device)
        spent = statistics.median(alone(drawn, pieces, seconds / tokens, device) for _ in range(runs))
    print(f"{kind}, {tokens} tokens without pauses: {unpaced:.3f} s")
    what = f"drawing {tokens} tokens of {kind} / decoding as many"
    return Row(what, f"{spent:.3f} s of CPU", f"{seconds:.2f} s", spent / seconds, "<= 0.05")


def pieces_of(kind: str, tokens: int) -> list[str]:
    """Text of one kind, split into tokens of the starter model."""
    with tempfile.TemporaryDirectory() as name:
        chat = led(Path(name), model="starter", cache_gb=0)
        try:
            for _ in chat.loaded.responder.load():
                pass
            text = OPENINGS.get(kind, "") + "".join(map(TEXTS[kind].format, islice(count(1), tokens)))
            backend, detokenizer = chat.loaded.engine.backend, Detokenizer(())
            ids = backend.tokenize((Text(text),))[:tokens]
            return [detokenizer.feed(backend.piece(token))[0] for token in ids]
        finally:
            leave(chat)


def drawn(pieces: Sequence[str], interval: float, device: str) -> float:
    """Draw a text on a terminal, one piece per `interval` seconds; return the CPU seconds spent."""
    sit_at(device)
    sink = MarkdownSink(standard_streams())
    start, spent = time.perf_counter(), 0.0
    for at, piece in enumerate(pieces):
        time.sleep(max(0.0, start + at * interval - time.perf_counter()))
        drawing_start = time.thread_time()
        sink.emit(TokenEvent(SequenceId(0), piece))
        spent += time.thread_time() - drawing_start
    drawing_start = time.thread_time()
    sink.close()
    return spent + time.thread_time() - drawing_start


if __name__ == "__main__":
    main()
