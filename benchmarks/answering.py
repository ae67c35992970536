"""Questions, loaded models and batch runs, shared by the benchmarks."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.cli.app import App
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import Event
from cerebrum_cli.core.settings import Settings, fold
from cerebrum_cli.engine.requests import ContextOptions
from cerebrum_cli.engine.step import TokenRow
from cerebrum_cli.formats.prompt_format import CEREBRUM
from cerebrum_cli.replies.interface import Model, open_source
from cerebrum_cli.replies.majority_vote import Outcome, Row
from cerebrum_cli.replies.source import AUTO_PARALLEL, ModelSource
from cerebrum_cli.rows.answering import BatchOptions, answer_rows
from cerebrum_cli.rows.read import RowList
from cerebrum_cli.rows.record import Record
from cerebrum_cli.rows.row import InputRow as Question, prompt_row
from cerebrum_cli.rows.run import open_run
from cerebrum_cli.terminal.sinks import render

THREADS = 2
ONE_SEQUENCE = ContextOptions()
GSM8K = "gsm8k-200.jsonl"


class BatchResult(NamedTuple):
    """Seconds from the loaded model to the complete result, and the result's rows."""

    seconds: float
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class BatchJob:
    """A batch to run; `settings` come on top of the benchmark's format and threads, `parallel` None means `auto`.

    With `ignore_eos`, every reply has the maximum length: neither the end token nor a stop string ends it.
    """

    model: str
    questions: Sequence[Question]
    settings: Mapping[str, Any] = field(default_factory=dict)
    parallel: int | None = None
    ignore_eos: bool = False


@dataclass
class Decoding:
    """The rows that llama.cpp decodes in this process, and the seconds that it takes, from now on."""

    rows: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        from cerebrum_cli.engine.llama.context import LlamaContext

        decode = LlamaContext.decode

        def observed(context: LlamaContext, rows: Sequence[TokenRow]) -> bool:
            start = time.perf_counter()
            is_done = decode(context, rows)
            self.seconds += time.perf_counter() - start
            self.rows += len(rows)
            return is_done

        LlamaContext.decode = observed  # type: ignore[method-assign, assignment]


def gsm8k(directory: Path, count: int) -> list[Question]:
    """The first `count` questions of GSM8K."""
    lines = (directory / GSM8K).read_text(encoding="utf-8").splitlines()[:count]
    if len(lines) < count:
        raise RuntimeError(f"{directory / GSM8K} has {len(lines)} questions, but {count} are needed")
    return [prompt_row(number, number, json.loads(line)["question"]) for number, line in enumerate(lines, 1)]


def model_path(model: str) -> Path:
    """Path of an installed model's file."""
    return App.of_user().library.resolve(model).path


def benchmark_settings(overrides: Mapping[str, Any]) -> Settings:
    """Settings for the `cerebrum` format on two threads; the user's configuration is ignored."""
    return fold({"format": CEREBRUM.name, "threads": THREADS}, overrides)


@contextmanager
def loaded_model(model: str, settings: Settings, context: ContextOptions = ONE_SEQUENCE) -> Iterator[Model]:
    """Load a model as the commands do."""
    app = App.of_user()
    with open_source(ModelSource(app, app.library.resolve(model), settings, context=context)) as loaded:
        list(loaded.load())
        yield loaded


def run_batch(job: BatchJob) -> BatchResult:
    """Run a batch as `cerebrum batch` does, writing to a file; to be called in a subprocess."""
    settings = benchmark_settings(job.settings)
    options = BatchOptions(settings)
    rows = RowList(tuple((question.asked, question) for question in job.questions))
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "answers.jsonl"
        with (
            closing(open_run(output, Record({}), rows)) as run,
            opened_model(job, settings) as loaded,
        ):
            if job.ignore_eos:
                ignore_eos(loaded)
            start = time.perf_counter()
            events = answer_rows(loaded, run, options)
            render(events, loaded.cancel, ())
            run.complete()
            seconds = time.perf_counter() - start
        lines = output.read_text(encoding="utf-8").splitlines()
    objects = tuple(json.loads(line) for line in lines)
    if failed := [each for each in objects if each["error"]]:
        raise RuntimeError(f"{len(failed)} rows failed: {failed[0]['error']}")
    return BatchResult(seconds, objects)


def ignore_eos(model: Model) -> None:
    """Let every row of a model have replies of the maximum length."""
    run_rows = model.run_rows

    def without_end(row: Row) -> Row:
        assert isinstance(row.request, Ask)
        return replace(row, request=replace(row.request, ignore_eos=True))

    def run(rows: Iterable[Row], **options: Any) -> Generator[Event | Outcome, None, None]:
        return run_rows(map(without_end, rows), **options)

    model.run_rows = run  # type: ignore[method-assign, assignment]


def opened_model(job: BatchJob, settings: Settings) -> AbstractContextManager[Model]:
    """Open the model of a batch."""
    slots = min(job.parallel or AUTO_PARALLEL, len(job.questions))
    context = ContextOptions(slots=slots, batch_invariant=True)
    return loaded_model(job.model, settings, context)


def tokenized_prompts(model: str, questions: Sequence[Question]) -> list[tuple[int, ...]]:
    """Token ids of the questions' prompts; to be called in a subprocess."""
    with loaded_model(model, benchmark_settings({})) as loaded:
        return [loaded.preview(conversation_of(question))[1] for question in questions]


def conversation_of(question: Question) -> Conversation:
    """Conversation of a question that is known to have one."""
    assert question.conversation is not None
    return question.conversation
