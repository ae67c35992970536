"""Measure the prompt tokens that a chat evaluates in its turns, and the time to resume a session.

Needs `cerebrum pull starter`. Usage: python -m benchmarks.chat [--data DIR] [--model FILE] [--only PART] [--runs N]
           [--dry-run]

DIR contains mt-bench-80.jsonl, the file fastchat/llm_judge/data/mt_bench/question.jsonl of lm-sys/FastChat: one object
per line, whose `turns` is a list of two questions. Without it, `turns` is skipped. FILE is an instruction model for
`long`, and for `resume` in addition to the starter model.

turns      Run CHATS chats of TURNS turns as `cerebrum chat` does. Evaluated tokens are the prompt's tokens that were
           not reused from the KV cache. New tokens are the prompt's tokens less those of the previous prompt and of the
           previous reply as stored in the history: all tokens of a first turn, and the stop string after a reply that
           it ended. The prompt cache on disk is off, so that chats do not share prefixes. Counts are deterministic, so
           there is one run.
resume     Chat until the session has SESSION tokens, and close it. Separate processes then ask the same question, with
           the saved state and without it in alternation: seconds from the question to the first token with the model
           loaded. This includes finding, verifying and loading the state, and evaluating the question. Files are in the
           page cache.
long       LONG_TURNS turns up to LONG_SESSION tokens: seconds from a question to the first token outside llama.cpp's
           decoding, of the last turn against the second.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.answering import Decoding
from benchmarks.harness import Row, alternate, argument_parser, in_subprocess, record
from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.chat.message_tree import MessageTree
from cerebrum_cli.cli.app import App
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import Event, FinishEvent, TokenEvent
from cerebrum_cli.core.settings import Layer
from cerebrum_cli.replies.interface import open_source
from cerebrum_cli.replies.source import ModelSource

HEADING = "A chat"
FORMATS = ("cerebrum", "embedded")
CHATS, TURNS = 4, 10
SESSION, LONG_SESSION, LONG_TURNS = 1000, 12_000, 20  # tokens, turns
LONG_MESSAGE = (
    "Apples are picked by hand from August to November, sorted by size and colour, and kept cool until spring. " * 4
)
QUESTION = "How are apples kept until spring?"


def main() -> None:
    """Measure all parts or one, and record each when it is done."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory with mt-bench-80.jsonl")
    parser.add_argument("--model", type=Path, metavar="FILE", help="an instruction model, for `long` and `resume`")
    parser.add_argument("--only", choices=("turns", "resume", "long"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-n", type=int, default=64, help="tokens per reply in `turns` [default: 64]")
    options = parser.parse_args()
    if options.data and options.only in (None, "turns"):
        chats = load_chats(options.data / "mt-bench-80.jsonl")
        record(HEADING, (evaluated_row(chats, format_name, options.n) for format_name in FORMATS), options.dry_run)
    elif options.only in (None, "turns"):
        print("skipping turns: they need --data")
    if options.only in (None, "resume"):
        record(HEADING, [restore_row("starter", options.runs, SESSION)], options.dry_run)
        if options.model:
            record(HEADING, [restore_row(str(options.model), 1, LONG_SESSION)], options.dry_run)
    if options.model and options.only in (None, "long"):
        last_ms, second_ms = (1e3 * seconds for seconds in in_subprocess(seconds_beside_decoding, str(options.model)))
        label = f"first token outside of decoding, {options.model.stem}, turn {LONG_TURNS} / 2"
        row = Row(label, f"{last_ms:.1f} ms", f"{second_ms:.1f} ms", last_ms / second_ms, "<= 1.1")
        record(HEADING, [row], options.dry_run)


def open_chat(directory: Path, **overrides: Any) -> Chat:
    """Open a chat as `cerebrum chat` does, with the installed models, and its data in a directory."""
    installed = App.of_user()
    app = replace(installed, config_directory=directory, data_directory=directory, cache_directory=directory)
    app.library = installed.library

    def resolve(layer: Layer) -> ModelSource:
        model = app.library.resolve(layer.get("model"))
        return ModelSource(app, model, app.settings(layer, model.recommended)).for_chat()

    source = resolve(overrides)
    return Chat(
        tree=MessageTree(app.open_history()),
        resolve=resolve,
        overrides=overrides,
        loaded=open_source(source),
        settings=source.settings,
    )


def close_chat(chat: Chat) -> None:
    """Close a chat without saving its state."""
    chat.loaded.engine.close()
    chat.tree.history.close()


def finish_of(events: Iterator[Event]) -> FinishEvent:
    """Consume the events of a reply; return its finish event."""
    (finish,) = [event for event in events if isinstance(event, FinishEvent)]
    return finish


# Tokens evaluated in turns.


def load_chats(path: Path) -> list[list[str]]:
    """Group the first questions of a file into chats."""
    lines = path.read_text(encoding="utf-8").splitlines()
    questions = [question for line in lines for question in json.loads(line)["turns"]]
    chats = [questions[start : start + TURNS] for start in range(0, CHATS * TURNS, TURNS)]
    if any(len(chat) != TURNS for chat in chats):
        raise RuntimeError(f"{path} has {len(questions)} questions, but {CHATS * TURNS} are needed")
    return chats


class Turn(NamedTuple):
    """Number of prompt tokens evaluated in one turn, and of those that were new."""

    evaluated: int
    new: int


def evaluated_row(questions: Sequence[Sequence[str]], format_name: str, limit: int) -> Row:
    """Compare the evaluated tokens of all turns with the new ones."""
    with tempfile.TemporaryDirectory() as name:
        measured = [turn for chat in questions for turn in run_turns(Path(name), chat, format_name, limit)]
    total, new = sum(turn.evaluated for turn in measured), sum(turn.new for turn in measured)
    worst = max(turn.evaluated / turn.new for turn in measured)
    label = f"prompt tokens evaluated in {len(questions)} chats of {TURNS} turns, {format_name} / new tokens"
    return Row(label, f"{total} tokens, worst turn {worst:.3f}", f"{new} tokens", total / new, "<= 1.1")


def run_turns(directory: Path, questions: Sequence[str], format_name: str, limit: int) -> Iterator[Turn]:
    """Run one chat, and yield its turns."""
    chat = open_chat(directory, model="starter", format=format_name, max_tokens=limit, cache_gb=0)
    known_tokens = 0
    try:
        for question in questions:
            finish = finish_of(chat.send(question))
            if finish.prompt_tokens <= known_tokens:
                raise RuntimeError("the chat has outgrown the context; use shorter replies (-n)")
            yield Turn(finish.prompt_tokens - finish.cached_tokens, finish.prompt_tokens - known_tokens)
            known_tokens = finish.prompt_tokens + tokens_of_reply(chat)
    finally:
        close_chat(chat)


def tokens_of_reply(chat: Chat) -> int:
    """Number of tokens of the last reply in the history: as generated, or tokenized from its text."""
    reply, vocabulary = chat.tree.last_reply, chat.loaded.engine.vocabulary
    assert reply is not None
    if reply.message.tokens is not None:
        return len(reply.message.tokens)
    text = Text(f" {reply.message.content.strip()}")
    return len(vocabulary.tokenize((text,))) - len(vocabulary.tokenize(()))


# Resuming a session.


def restore_row(model: str, runs: int, tokens: int) -> Row:
    """Compare resuming a session with its saved state and without."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        finishes: list[FinishEvent] = []
        in_subprocess(save_session, directory, model, tokens)

        def seconds(with_cache: bool) -> float:
            finish = in_subprocess(resume, directory, model, tokens, with_cache)
            if (finish.cached_tokens > tokens // 2) is not with_cache:
                raise RuntimeError(f"{finish.cached_tokens} of {finish.prompt_tokens} tokens were reused")
            finishes.append(finish)
            return finish.timings.ttft_s

        restored_s, evaluated_s, ratio = alternate(lambda: seconds(True), lambda: seconds(False), runs)
        size = sum(path.stat().st_size for path in (directory / "states").iterdir())
    cached, prompt = finishes[0].cached_tokens, finishes[0].prompt_tokens
    return Row(
        f"first token after load, {Path(model).stem}, session of {tokens:,} tokens restored / evaluated",
        f"{restored_s * 1e3:.1f} ms ({cached} tokens of {prompt}, {size / 1e6:.0f} MB)",
        f"{evaluated_s * 1e3:.0f} ms",
        ratio,
        "<= 0.05" if tokens == SESSION else "<= 0.2",
    )


def save_session(directory: Path, model: str, tokens: int) -> None:
    """Chat until the session has so many tokens, and close it as the command does."""
    chat = open_chat(directory, model=model, format="cerebrum", max_tokens=64, ctx=2 * tokens)
    size = 0
    while size < tokens:
        finish = finish_of(chat.send(LONG_MESSAGE * (tokens // SESSION)))
        size = finish.prompt_tokens + finish.completion_tokens
    if notice := chat.close():
        raise RuntimeError(notice.message)


def resume(directory: Path, model: str, tokens: int, with_cache: bool) -> FinishEvent:
    """Ask a question with the default limit on the reply's length, stop at the first token, and undo the turn."""
    off = {} if with_cache else {"cache_gb": 0}
    chat = open_chat(directory, model=model, format="cerebrum", ctx=2 * tokens, **off)
    chat.tree.session = chat.tree.history.acquire_named(None)
    try:
        finish = finish_of(until_first_token(chat))
        chat.tree.undo()
        return finish
    finally:
        close_chat(chat)


def until_first_token(chat: Chat) -> Iterator[Event]:
    """Yield the events of a reply, which is cancelled at its first token."""
    for event in chat.send(QUESTION):
        if isinstance(event, TokenEvent):
            chat.loaded.cancel()
        yield event


# A long chat.


def seconds_beside_decoding(model: str) -> tuple[float, float]:
    """Seconds of the last turn, and of the second; to be called in a subprocess."""
    decoding = Decoding()
    beside: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        chat = open_chat(Path(name), model=model, ctx=2 * LONG_SESSION, cache_gb=0)
        list(chat.loaded.load())
        for number in range(LONG_TURNS):
            decoding.seconds, start = 0.0, time.perf_counter()
            question = f"{number}. {LONG_MESSAGE * (LONG_SESSION // LONG_TURNS // 100)}"
            for event in chat.send(question):
                if isinstance(event, TokenEvent) and len(beside) == number:
                    beside.append(time.perf_counter() - start - decoding.seconds)
                    chat.loaded.cancel()
        close_chat(chat)
    return beside[-1], beside[1]


if __name__ == "__main__":
    main()
