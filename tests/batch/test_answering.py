"""Rows that cannot be asked, whose errors are written and hold no memory, and rows after a cancel."""

from collections.abc import Iterator

import pytest
from batch_files import rows_in
from installations import model_on
from remote_engines import remote_engine, serving
from scripted_backend import END, ScriptedBackend
from templates import chosen_format

from cerebrum_cli.batch.answering import BatchOptions, answer_rows
from cerebrum_cli.batch.input_row import row_flags
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import RefusedEvent
from cerebrum_cli.core.row_events import RowEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.replies.concurrent_rows import run_rows
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import Outcome, Row
from cerebrum_cli.results.results import open_stream
from cerebrum_cli.results.rows import RowKind

TOO_LONG = "q" * 500  # of a context of 100 tokens


@pytest.fixture(params=["local", "server"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "local":
        yield LocalEngine(ScriptedBackend(lambda held, seed: END, context_size=100).open)
    else:
        with serving(lambda held, seed: END) as servers:
            yield remote_engine(*servers)


@pytest.fixture
def model(engine: Engine) -> Iterator[Model]:
    with model_on(engine, chosen_format("raw")) as model:
        yield model


def test_errors_of_a_cancelled_batch_are_written(model: Model) -> None:
    rows = rows_in(f'{{"prompt": "{TOO_LONG}"}}\n' * 50, "jsonl")
    lines: list[str] = []
    result = open_stream(lines.append, RowKind(row_flags, str), [(b"", row.number) for row in rows])
    written = []
    for event in answer_rows(model, enumerate(rows), BatchOptions(Settings()), result):
        if isinstance(event, RowEvent):
            written.append(len(lines))
            if event.done == 20:
                model.cancel()
    assert len(lines) >= 20
    assert written[10] == 10


def test_refused_rows_keep_no_tokens(model: Model) -> None:
    rows = [Row(0, Ask(Conversation().user(TOO_LONG), Settings()))]
    [refused] = [event.result for event in run_rows(model, rows) if isinstance(event, Outcome)]
    assert isinstance(refused, RefusedEvent)
    assert refused.error.__traceback__ is None and refused.error.__context__ is None


def test_cancelled_rows_are_no_longer_read(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerebrum_cli.replies.concurrent_rows.SORT_WINDOW", 4)
    rows = iter([Row(number, Ask(Conversation().user("q"), Settings())) for number in range(10)])
    for event in run_rows(model, rows, in_order=True):
        if isinstance(event, Outcome):
            model.cancel()
    assert next(rows).key == 4
