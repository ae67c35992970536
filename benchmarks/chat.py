"""What a chat reads again: in its turns, and when a session is resumed.

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
           the model loaded. Finding the state, checking it from end to end, loading it and evaluating the question
           are in them. Files are in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from harness import Row, alternate, in_subprocess, record

from cerebrum_cli.application.chat.chat import Chat
from cerebrum_cli.application.inference.loading import ModelLoader
from cerebrum_cli.core.events import Event, FinishEvent, TokenEvent
from cerebrum_cli.core.parts import Text
from cerebrum_cli.runtime.composition import real_runtime

FORMATS = ("cerebrum", "embedded")
CHATS, TURNS = 4, 10
SESSION = 1000
TOLD = "Apples are picked by hand from August to November, sorted by size and colour, and kept cool until spring. " * 4
NEXT = "How are apples kept until spring?"


def main() -> None:
    """Measure all parts, or one, and record each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="where mt-bench-80.jsonl is")
    parser.add_argument("--shape", type=Path, metavar="FILE", help="resume with this model, too")
    parser.add_argument("--only", choices=("turns", "resuming"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("-n", type=int, default=64, help="tokens of a reply in `turns` [default: 64]")
    given = parser.parse_args()
    if given.data and given.only in (None, "turns"):
        record(evaluated(chats(given.data / "mt-bench-80.jsonl"), form, given.n) for form in FORMATS)
    elif given.only in (None, "turns"):
        print("without --data, what turns evaluate is not measured")
    if given.only in (None, "resuming"):
        for model in ("starter", *filter(None, [given.shape])):
            record([resuming(str(model), given.runs)])


def open_chat(directory: Path, **given: Any) -> Chat:
    """Return a chat as the command leads it, with the models of this machine, and all that it keeps in a folder."""
    real = real_runtime()
    runtime = replace(real, config_directory=directory, data_directory=directory, cache_directory=directory)
    runtime.library = real.library
    opener = ModelLoader(runtime.library.resolve, runtime.settings, runtime.open_backend, runtime.prompt_cache)
    model, settings = opener.resolve_settings(given)
    return Chat(runtime.history, opener, given, opener.open(model, settings), settings)


def close_chat(chat: Chat) -> None:
    """Let go of a chat, and keep nothing more of it."""
    chat.loaded.engine.close()
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
    chat = open_chat(directory, model="starter", format=form, max_tokens=limit, cache_gb=0)
    known = 0
    try:
        for question in questions:
            finish = finish_of(chat.send(question))
            if finish.prompt_tokens <= known:
                raise RuntimeError("the chat has outgrown the context: ask for shorter replies with -n")
            yield Turn(finish.prompt_tokens - finish.cached_tokens, finish.prompt_tokens - known)
            known = finish.prompt_tokens + tokens_of_reply(chat)
    finally:
        close_chat(chat)


def tokens_of_reply(chat: Chat) -> int:
    """Return how many tokens the last reply has where it stands in the history: said, or read again from its text."""
    reply, engine = chat.last_reply, chat.loaded.engine
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
        in_subprocess(keep_session, directory, model)

        def seconds(keeps: bool) -> float:
            finish = in_subprocess(resumed, directory, model, keeps)
            if (finish.cached_tokens > SESSION // 2) is not keeps:
                raise RuntimeError(f"{finish.cached_tokens} of {finish.prompt_tokens} tokens were not evaluated")
            finishes.append(finish)
            return finish.timings.ttft_s

        kept, read, ratio = alternate(lambda: seconds(True), lambda: seconds(False), runs)
        size = sum(path.stat().st_size for path in (directory / "states").iterdir())
    cached, prompt = finishes[0].cached_tokens, finishes[0].prompt_tokens
    return Row(
        f"first token after load, {Path(model).stem}, session of {SESSION} tokens restored / evaluated",
        f"{kept * 1e3:.1f} ms ({cached} tokens of {prompt}, {size / 1e6:.0f} MB)",
        f"{read * 1e3:.0f} ms",
        ratio,
        "<= 0.05",
    )


def keep_session(directory: Path, model: str) -> None:
    """Lead a chat until it has SESSION tokens, and leave it as the command does."""
    chat = open_chat(directory, model=model, format="cerebrum", max_tokens=64)
    size = 0
    while size < SESSION:
        finish = finish_of(chat.send(TOLD))
        size = finish.prompt_tokens + finish.completion_tokens
    if notice := chat.close():
        raise RuntimeError(notice.message)


def resumed(directory: Path, model: str, keeps: bool) -> FinishEvent:
    """Ask for one token more, with the room a chat's reply has, and take the question back."""
    chat = open_chat(directory, model=model, format="cerebrum", **({} if keeps else {"cache_gb": 0}))
    chat.session = chat.history.acquire_latest()
    try:
        finish = finish_of(until_first_token(chat))
        chat.undo()
        return finish
    finally:
        close_chat(chat)


def until_first_token(chat: Chat) -> Iterator[Event]:
    """Yield the events of a reply that is cancelled as soon as it has begun."""
    for event in chat.send(NEXT):
        if isinstance(event, TokenEvent):
            chat.loaded.responder.cancel()
        yield event


if __name__ == "__main__":
    main()
