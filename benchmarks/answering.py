"""What benchmarks of batches and votes share: their questions, models opened as the commands do, rows answered so."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from harness import Row, record

from cerebrum_cli.answers.vote import Votes
from cerebrum_cli.application.inference.batch import BatchOptions, answer_rows
from cerebrum_cli.application.inference.loading import SINGLE, BackendFactory, LoadedModel, Parallel, open_model
from cerebrum_cli.batches.journal import open_journal
from cerebrum_cli.batches.rows import Row as Question
from cerebrum_cli.batches.rows import prompt_row
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import Event
from cerebrum_cli.core.settings import Settings, fold
from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag
from cerebrum_cli.engine.plan import LoadOptions
from cerebrum_cli.formats.plain import CEREBRUM
from cerebrum_cli.runtime.batch import plan_parallel
from cerebrum_cli.runtime.composition import real_runtime
from cerebrum_cli.terminal.sinks import render

THREADS = 2
GSM8K = "gsm8k-200.jsonl"

Watch = Callable[[Generator[Event, None, None]], Generator[Event, None, None]]


class Answered(NamedTuple):
    """The seconds from the loaded model to the whole result, and its rows."""

    seconds: float
    objects: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Work:
    """A batch: the model, the questions, settings beside format and threads, how many at once; None is `auto`.

    With `endless` replies go on to their last token, beyond the model's end of text and the format's stop string.
    """

    model: str
    questions: Sequence[Question]
    given: Mapping[str, Any] = field(default_factory=dict)
    at_once: int | None = None
    votes: int | None = None
    endless: bool = False


def gsm8k(directory: Path, count: int) -> list[Question]:
    """Return the first questions of GSM8K."""
    lines = (directory / GSM8K).read_text(encoding="utf-8").splitlines()[:count]
    if len(lines) < count:
        raise RuntimeError(f"{directory / GSM8K} has {len(lines)} questions, and {count} are needed")
    return [prompt_row(number, number, json.loads(line)["question"]) for number, line in enumerate(lines, 1)]


def path_of(model: str) -> Path:
    """Return where the file of a model is."""
    return real_runtime().library.resolve(model).path


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Return settings of the Cerebrum format on two threads, whatever this user has configured."""
    return fold({"format": CEREBRUM.name, "threads": THREADS}, given)


@contextmanager
def opened(model: str, settings: Settings, parallel: Parallel = SINGLE, forgets: bool = False) -> Iterator[LoadedModel]:
    """Load a model as the commands do, and yield it; see `forgetful`."""
    runtime = real_runtime()
    factory = forgetful(runtime.open_backend) if forgets else runtime.open_backend
    found = open_model(factory, runtime.library.resolve(model), settings, parallel=parallel)
    try:
        exhaust(found.responder.load())
        yield found
    finally:
        found.engine.close()


def forgetful(factory: BackendFactory) -> BackendFactory:
    """Return how to open models whose engine re-uses nothing of what its slots hold, and is the same otherwise."""

    def wrapped(options: LoadOptions) -> OpenBackend:
        def open_backend(tell: Callable[[Event], None], stop: StopFlag) -> Backend:
            backend = factory(options)(tell, stop)
            vars(backend)["shareable"] = lambda _: 0
            return backend

        return open_backend

    return wrapped


def exhaust(events: Iterable[Event]) -> None:
    """Play events out."""
    for _ in events:
        pass


def unwatched(events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """Return the events as they are."""
    return events


def answer(work: Work, watch: Watch = unwatched) -> Answered:
    """Answer a batch as `cerebrum batch` does, into a file; to be called in a process of its own."""
    settings = settings_of(work.given)
    votes = Votes(work.votes, work.votes) if work.votes else None
    manner = BatchOptions(settings, votes=votes, early_stop=False, ignore_eos=work.endless)
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "answers.jsonl"
        with closing(open_journal(output, {}, work.questions)) as result:
            parallel = plan_parallel(work.at_once, len(work.questions) * (manner.votes.maximum if manner.votes else 1))
            with opened(work.model, settings, parallel) as found:
                began = time.perf_counter()
                events = answer_rows(found.responder, work.questions, manner, result, in_order=False)
                render(watch(events), found.responder.cancel, ())
                result.complete()
                seconds = time.perf_counter() - began
        lines = output.read_text(encoding="utf-8").splitlines()
    objects = tuple(json.loads(line) for line in lines)
    if failed := [each for each in objects if each["error"]]:
        raise RuntimeError(f"{len(failed)} rows have no answer: {failed[0]['error']}")
    return Answered(seconds, objects)


def prompts_of(model: str, questions: Sequence[Question]) -> list[tuple[int, ...]]:
    """Return the prompts of questions as the model reads them; to be called in a process of its own."""
    with opened(model, settings_of({})) as found:
        return [found.responder.preview(conversation_of(question)).token_ids for question in questions]


def conversation_of(question: Question) -> Conversation:
    """Return a question as it is asked."""
    assert question.conversation is not None
    return question.conversation


def show(rows: Iterable[Row], dry: bool) -> None:
    """Keep rows in the table of results, or only print them."""
    if not dry:
        return record(rows)
    for row in rows:
        met = "met" if row.met else "not met"
        print(f"{row.what}: {row.ours} against {row.peer}, ratio {row.ratio:.3f}, bar {row.bar}, {met}; not recorded")
    return None
