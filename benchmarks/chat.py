"""What a chat costs beside its model: prompts read again, sessions resumed, replies drawn as Markdown.

Needs `cerebrum pull starter`. Usage: python benchmarks/chat.py [--data DIR] [--shape FILE] [--only PART] [--runs N]

DIR holds mt-bench-80.jsonl, the MT-bench questions that lm-sys/FastChat publishes as
fastchat/llm_judge/data/mt_bench/question.jsonl: an object a line, its `turns` a list of two questions. Without it
the prompts are left out. FILE is what benchmarks/mistral_shape.py writes: resuming is measured with it, too.

turns      The chat as the command leads it answers CHATS times TURNS questions. Evaluated are the prompt's tokens that
           were not in the model's memory. New are those that were neither in the turn's last prompt nor said in the
           last reply: their number less the last prompt's and less the reply's as it stands in the history. So in a
           first turn all are new, and after a reply that a stop string ended, the string. Nothing is kept on disk
           here, so that no chat spares another's. Counts are the same each time: it is run once.
resuming   A session is led until it has SESSION tokens, and left. Then the same question is asked of it by processes
           of their own, in turn with the kept state and without: seconds from the question to its first token with
           the model loaded. Finding the state, checking it from end to end and loading it are in them, and so are
           making the context, as long as the model's, and evaluating the question. Files are in the system's cache.
rendering  A chat on a terminal of 100 columns and 40 rows that takes all it is sent, in turn with the same chat
           written nowhere with --no-markdown, each a process: from the first token until the last is drawn. Then
           texts of other kinds, their tokens given to the terminal's sink at the pace at which they were decoded,
           since what drawing costs depends on it: processor seconds of drawing, loading the renderer included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from harness import Row, alone, in_turn, medians, record, sit_at, terminal

from cerebrum_cli.application.chat import Chat
from cerebrum_cli.application.opening import Opener
from cerebrum_cli.engine.detokenizer import Detokenizer
from cerebrum_cli.ground.events import Event, FinishEvent, SequenceId, TokenEvent
from cerebrum_cli.ground.parts import Text
from cerebrum_cli.runtime import real_runtime
from cerebrum_cli.terminal.repl import Repl
from cerebrum_cli.terminal.sinks import MarkdownSink
from cerebrum_cli.terminal.streams import standard_streams

FORMATS = ("cerebrum", "embedded")
CHATS, TURNS = 4, 10
SESSION = 1000
TOLD = "Apples are picked by hand from August to November, sorted by size and colour, and kept cool until spring. " * 4
NEXT = "How are apples kept until spring?"
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
    """Measure all parts, or one, and record each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="where mt-bench-80.jsonl is")
    parser.add_argument("--shape", type=Path, metavar="FILE", help="resume with this model, too")
    parser.add_argument("--only", choices=("turns", "resuming", "rendering"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-n", type=int, default=64, help="tokens of a reply in `turns` [default: 64]")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of what is rendered [default: 2000]")
    given = parser.parse_args()
    if given.data and given.only in (None, "turns"):
        record(evaluated(chats(given.data / "mt-bench-80.jsonl"), form, given.n) for form in FORMATS)
    elif given.only in (None, "turns"):
        print("without --data, what turns evaluate is not measured")
    if given.only in (None, "resuming"):
        for model in ("starter", *filter(None, [given.shape])):
            record([resuming(str(model), given.runs)])
    if given.only in (None, "rendering"):
        record(rendering(given.tokens, given.runs))


# What all parts use.


def led(directory: Path, **given: Any) -> Chat:
    """Return a chat as the command leads it, with the models of this machine, and all that it keeps in a folder."""
    real = real_runtime()
    runtime = replace(real, config_directory=directory, data_directory=directory, cache_directory=directory)
    runtime.library = real.library
    opener = Opener(runtime.library.resolve, runtime.settings, runtime.open_backend, runtime.states)
    model, settings = opener.settled(given)
    return Chat(runtime.history, opener, given, opener.open(model, settings), settings)


def leave(chat: Chat) -> None:
    """Let go of a chat, and keep nothing more of it."""
    chat.opened.engine.close()
    chat.history.close()


def finish_of(events: Iterator[Event]) -> FinishEvent:
    """Play a reply out, and return how it ended."""
    (finish,) = [event for event in events if isinstance(event, FinishEvent)]
    return finish


# What a turn evaluates.


def chats(path: Path) -> list[list[str]]:
    """Return the first questions of a file, joined to chats."""
    lines = path.read_text(encoding="utf-8").splitlines()
    questions = [question for line in lines for question in json.loads(line)["turns"]]
    found = [questions[begin : begin + TURNS] for begin in range(0, CHATS * TURNS, TURNS)]
    if any(len(chat) != TURNS for chat in found):
        raise RuntimeError(f"{path} has {len(questions)} questions, and {CHATS * TURNS} are needed")
    return found


class Turn(NamedTuple):
    """The tokens of one turn's prompt that were evaluated, and those that were new."""

    evaluated: int
    new: int


def evaluated(questions: Sequence[Sequence[str]], form: str, limit: int) -> Row:
    """Compare what all turns evaluate with what was new in them."""
    with tempfile.TemporaryDirectory() as name:
        found = [turn for chat in questions for turn in turns(Path(name), chat, form, limit)]
    total, new = sum(turn.evaluated for turn in found), sum(turn.new for turn in found)
    worst = max(turn.evaluated / turn.new for turn in found)
    what = f"prompt tokens evaluated in {len(questions)} chats of {TURNS} turns, {form} / new tokens"
    return Row(what, f"{total} tokens, worst turn {worst:.3f}", f"{new} tokens", total / new, "<= 1.1")


def turns(directory: Path, questions: Sequence[str], form: str, limit: int) -> Iterator[Turn]:
    """Lead one chat, and yield its turns."""
    chat = led(directory, model="starter", format=form, max_tokens=limit, cache_gb=0)
    known = 0
    try:
        for question in questions:
            finish = finish_of(chat.say(question))
            if finish.prompt_tokens <= known:
                raise RuntimeError("the chat has outgrown the context: ask for shorter replies with -n")
            yield Turn(finish.prompt_tokens - finish.cached_tokens, finish.prompt_tokens - known)
            known = finish.prompt_tokens + tokens_of_reply(chat)
    finally:
        leave(chat)


def tokens_of_reply(chat: Chat) -> int:
    """Return how many tokens the last reply has where it stands in the history: said, or read again from its text."""
    reply, engine = chat.last_reply, chat.opened.engine
    assert reply is not None
    if reply.message.tokens is not None:
        return len(reply.message.tokens)
    return len(engine.tokenize((Text(f" {reply.message.content.strip()}"),))) - len(engine.tokenize(()))


# Resuming a session.


def resuming(model: str, runs: int) -> Row:
    """Compare going on in a session with its state kept and without."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        finishes: list[FinishEvent] = []
        alone(keep_session, directory, model)

        def seconds(keeps: bool) -> float:
            finish = alone(resumed, directory, model, keeps)
            if (finish.cached_tokens > SESSION // 2) is not keeps:
                raise RuntimeError(f"{finish.cached_tokens} of {finish.prompt_tokens} tokens were not evaluated")
            finishes.append(finish)
            return finish.timings.ttft_s

        kept, read, ratio = in_turn(lambda: seconds(True), lambda: seconds(False), runs)
        size = sum(path.stat().st_size for path in (directory / "states").iterdir())
    cached, prompt = finishes[0].cached_tokens, finishes[0].prompt_tokens
    return Row(
        f"first token after load, {Path(model).stem}, session of {SESSION} tokens resumed / evaluated",
        f"{kept * 1e3:.1f} ms ({cached} tokens of {prompt}, {size / 1e6:.0f} MB)",
        f"{read * 1e3:.0f} ms",
        ratio,
        "<= 0.05",
    )


def keep_session(directory: Path, model: str) -> None:
    """Lead a chat until it has SESSION tokens, and leave it as the command does."""
    chat = led(directory, model=model, format="cerebrum", max_tokens=64)
    size = 0
    while size < SESSION:
        finish = finish_of(chat.say(TOLD))
        size = finish.prompt_tokens + finish.completion_tokens
    if notice := chat.leave():
        raise RuntimeError(notice.what)


def resumed(directory: Path, model: str, keeps: bool) -> FinishEvent:
    """Ask for one token more, with the room a chat's reply has, and take the question back."""
    chat = led(directory, model=model, format="cerebrum", **({} if keeps else {"cache_gb": 0}))
    chat.session = chat.history.latest()
    try:
        finish = finish_of(until_first_token(chat))
        chat.undo()
        return finish
    finally:
        leave(chat)


def until_first_token(chat: Chat) -> Iterator[Event]:
    """Yield the events of a reply that is cancelled as soon as it has begun."""
    for event in chat.say(NEXT):
        if isinstance(event, TokenEvent):
            chat.opened.responder.cancel()
        yield event


# Rendering.


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
        repl = Repl(chat, standard_streams(), no_markdown=device == os.devnull)
        repl.play(stamped(chat.say(GUIDE), stamps))
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
            for _ in chat.opened.responder.load():
                pass
            text = OPENINGS.get(kind, "") + "".join(map(TEXTS[kind].format, islice(count(1), tokens)))
            backend, detokenizer = chat.opened.engine.backend, Detokenizer(())
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
