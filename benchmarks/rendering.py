"""What it costs to draw replies as Markdown on a terminal, long ones and of all kinds.

Needs `cerebrum pull starter`. Usage: python benchmarks/rendering.py [--runs N] [--tokens N]

A chat on a terminal of 100 columns and 40 rows that takes all it is sent, in turn with the same chat written nowhere
with --no-markdown, each a process: from the first token until the last is drawn. Then texts of other kinds, their
tokens given to the terminal's sink at the pace at which they were decoded, since what drawing costs depends on it:
processor seconds of drawing, loading the renderer included.
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
from cerebrum_cli.terminal.repl.keyboard import Keyboard
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
    """Measure all of it, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2000, help="of what is drawn [default: 2000]")
    given = parser.parse_args()
    record(rendering(given.tokens, given.runs))


def rendering(tokens: int, runs: int) -> list[Row]:
    """Compare a long reply drawn with the same written nowhere, then measure drawing texts of other kinds."""

    def pair() -> tuple[Said, Said]:
        with tempfile.TemporaryDirectory() as name, terminal(COLUMNS, ROWS) as device:
            return alone(said, Path(name), tokens, device), alone(said, Path(name), tokens, os.devnull)

    pair()
    pairs = [pair() for _ in range(runs)]
    shown, plain, ratio = medians([(tokens / ours.seconds, tokens / peer.seconds) for ours, peer in pairs])
    grown, usual, growth = medians([(ours.growth, peer.growth) for ours, peer in pairs])
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
        Row(flat, f"{grown:.3f}", f"{usual:.3f}", growth, "<= 1.05"),
        *(drawing(kind, tokens, tokens / plain, runs) for kind in TEXTS),
    ]


class Said(NamedTuple):
    """Seconds from a reply's first token until all of it was shown, and its last quarter's over its second one's."""

    seconds: float
    growth: float


def said(directory: Path, tokens: int, device: str) -> Said:
    """Have the starter model say something long on a terminal, or nowhere; RuntimeError if it ends by itself."""
    sit_at(device)
    chat = led(directory, model="starter", max_tokens=tokens, cache_gb=0)
    stamps: list[float] = []
    try:
        streams = standard_streams()
        repl = Repl(chat, streams, Signals(streams, Keyboard()), COMMANDS, no_markdown=device == os.devnull)
        repl.render(stamped(chat.send(GUIDE), stamps))
        ended = time.perf_counter()
    finally:
        leave(chat)
    if len(stamps) != tokens:
        raise RuntimeError(f"the model stopped after {len(stamps)} tokens")
    quarter = tokens // 4
    second, last = stamps[2 * quarter - 1] - stamps[quarter - 1], ended - stamps[3 * quarter - 1]
    return Said(ended - stamps[0], last / second)


def stamped(events: Generator[Event, None, None], stamps: list[float]) -> Generator[Event, None, None]:
    """Yield events as they come, and note when tokens did."""
    try:
        for event in events:
            if isinstance(event, TokenEvent) and event.token is not None:
                stamps.append(time.perf_counter())
            yield event
    finally:
        events.close()


def drawing(kind: str, tokens: int, seconds: float, runs: int) -> Row:
    """Compare the processor seconds that drawing a text takes with those in which as many tokens were decoded."""
    pieces = alone(pieces_of, kind, tokens)
    with terminal(COLUMNS, ROWS) as device:
        at_once = alone(drawn, pieces, 0.0, device)
        spent = statistics.median(alone(drawn, pieces, seconds / tokens, device) for _ in range(runs))
    print(f"{kind}, {tokens} tokens without waiting for any: {at_once:.3f} s")
    what = f"drawing {tokens} tokens of {kind} / decoding as many"
    return Row(what, f"{spent:.3f} s of CPU", f"{seconds:.2f} s", spent / seconds, "<= 0.05")


def pieces_of(kind: str, tokens: int) -> list[str]:
    """Return a text of so many tokens, cut as the starter model would say it."""
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
    """Draw pieces of a text on a terminal, one each `interval` seconds; return the processor seconds that took."""
    sit_at(device)
    sink = MarkdownSink(standard_streams())
    start, spent = time.perf_counter(), 0.0
    for at, piece in enumerate(pieces):
        time.sleep(max(0.0, start + at * interval - time.perf_counter()))
        began = time.thread_time()
        sink.emit(TokenEvent(SequenceId(0), piece))
        spent += time.thread_time() - began
    began = time.thread_time()
    sink.close()
    return spent + time.thread_time() - began


if __name__ == "__main__":
    main()
