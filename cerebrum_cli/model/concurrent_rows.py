"""One way through many rows: rows in, and their replies and votes out, as they finish.

On this machine, rows are read in windows. Rows of similar length run together, the shortest first, and rows with a
common prefix one after the other. Servers get rows in the given order, as they can take them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import CerebrumError, EngineError, Interrupted
from cerebrum_cli.core.events import Event, FinishEvent, Origin, RefusedEvent
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.model.loaded_model import LoadedModel
from cerebrum_cli.model.reply import Continuation, PreparedReply, Reply, ReplyRequest, ReplyStream
from cerebrum_cli.model.voting import MajorityVote, SampleEvent

SORT_WINDOW = 4096  # rows sorted together so that shared prefixes meet; more would delay the first answer
READ_AHEAD = 16_384  # rows read past the first unfinished one where answers are in order, and so wait in memory for it


@dataclass(frozen=True, slots=True)
class Row:
    """What is asked, and how it is answered: by the samples of the request, or by the vote on them.

    `id` is for the caller. A row that cannot be asked has an `error` in place of a request.
    """

    id: Any
    request: ReplyRequest | Continuation | CerebrumError
    vote: MajorityVote | None = None


class RefusedRow(NamedTuple):
    """Why a row, or one of its samples, has no reply, and the server that refused it."""

    error: CerebrumError
    origin: Origin | None = None


class RowOutcome(NamedTuple):
    """A sample of a row has finished, or the whole row, by a vote or a refusal; a cancelled reply is one, too."""

    row: Row
    sample: int
    outcome: Reply | MajorityVote | RefusedRow
    is_whole_row: bool = False


@dataclass(slots=True)
class PendingRow:
    """A row that is running, and the replies to it so far; `samples` of them have not finished."""

    row: Row
    number: int  # of all rows that were read
    prepared: PreparedReply
    samples: int
    replies: dict[int, Reply] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return self.row.vote.is_over if self.row.vote else self.samples == 0

    def add_event(self, event: SampleEvent, stream: ReplyStream) -> Iterator[Event | RowOutcome]:
        """Process an event of this row; yield changes of its tally, and what has finished."""
        sample, vote = event.sequence.sample, self.row.vote
        if vote:
            if vote.add_event(event, stream):
                yield vote.tally_event
            if vote.is_over:
                yield RowOutcome(self.row, 0, vote, is_whole_row=True)
            return
        if isinstance(event, RefusedEvent):
            self.samples -= 1
            yield RowOutcome(self.row, sample, RefusedRow(event.error, event.origin))
            return
        if sample not in self.replies:
            self.replies[sample] = self._begin_reply()
        self.replies[sample].emit(event)
        if isinstance(event, FinishEvent):
            self.samples -= 1
            yield RowOutcome(self.row, sample, self.replies.pop(sample))

    def _begin_reply(self) -> Reply:
        """A reply, with the tokens and texts of the one it continues."""
        request = self.row.request
        if not isinstance(request, ReplyRequest):
            return Reply()
        reply = Reply(None, request.conversation)
        if request.prefix_tokens:
            channels = self.prepared.channels
            reply.begin(request.prefix_tokens, channels.split_prefix()[1] if channels else ())
        return reply


def run_rows(
    model: LoadedModel,
    rows: Iterable[Row],
    scope: CancelScope | None = None,
    in_order: bool = False,
    sorts: bool = True,
) -> Generator[Event | RowOutcome, None, None]:
    """Answer rows; yield all events of loading and generating, and a RowOutcome for all that finishes.

    Rows that cannot be asked are refused as they are read. If a reader needs the rows `in_order`, no row overtakes
    another by far. A model on this machine `sorts` rows by their tokens, to evaluate common prefixes once. After a
    cancel of the `scope`, rows are missing. Raises EngineError.
    """
    run = _Run(model, scope or model.engine.cancel_scope())
    yield from model.load()
    if model.engine.schedules_rows:
        yield from run.generate(_near_the_first(run, rows) if in_order else rows)
        return
    rows = iter(rows)
    while window := list(islice(rows, SORT_WINDOW)):
        pending = [row for row in map(run.prepare, window) if row]
        if run.scope.is_cancelled:
            return
        yield from run.take_refused()
        for group in [pending] if in_order else _groups(model, pending, sorts):
            if not run.scope.is_cancelled:
                yield from run.generate_prepared(group)
        if run.scope.is_cancelled:
            return


class _Run:
    """Rows that are running, by the index of their requests; `refused` are those that could not be asked."""

    def __init__(self, model: LoadedModel, scope: CancelScope) -> None:
        self.scope = scope
        self.pending: dict[int, PendingRow] = {}
        self._model = model
        self._refused: list[RowOutcome] = []
        self._read = 0

    def prepare(self, row: Row) -> PendingRow | None:
        """Tokenize a row; None if it is refused, or everything was cancelled."""
        if self.scope.is_cancelled:
            return None
        request, number = row.request, self._read
        self._read += 1
        try:
            if isinstance(request, CerebrumError):
                raise request
            if row.vote and isinstance(request, ReplyRequest):
                request = row.vote.with_samples(request, self._model.engine)
            prepared = self._model.prepare(request)
        except (EngineError, Interrupted):  # these concern all rows
            raise
        except CerebrumError as error:
            error.__context__ = None  # the frames of a traceback hold the tokens of the prompt
            self._refused.append(RowOutcome(row, 0, RefusedRow(error.with_traceback(None)), is_whole_row=True))
            return None
        return PendingRow(row, number, prepared._replace(request=prepared.request.compact()), prepared.request.n)

    def take_refused(self) -> list[RowOutcome]:
        refused, self._refused = self._refused, []
        return refused

    def generate(self, rows: Iterable[Row | None]) -> Iterator[Event | RowOutcome]:
        """Answer rows that are tokenized as the engine takes them; None is for none now."""
        yield from self.generate_prepared(self._prepare_each(rows))
        yield from self.take_refused()

    def _prepare_each(self, rows: Iterable[Row | None]) -> Iterator[PendingRow | None]:
        for row in rows:
            if self.scope.is_cancelled:
                return
            if row is None:
                yield None
            elif pending := self.prepare(row):
                yield pending

    def generate_prepared(self, rows: Iterable[PendingRow | None]) -> Iterator[Event | RowOutcome]:
        self.pending = {}
        with closing(ReplyStream(self._model.engine, self._requests(rows), self.scope)) as stream:
            for event in stream:
                yield event
                if self._refused:
                    yield from self.take_refused()
                if isinstance(event, SampleEvent) and (row := self.pending.get(event.sequence.request)):
                    yield from row.add_event(event, stream)
                    if row.is_over:
                        del self.pending[event.sequence.request]
                        stream.forget(event.sequence.request)

    def _requests(self, rows: Iterable[PendingRow | None]) -> Iterator[PreparedReply | None]:
        index = 0
        for row in rows:
            if row:
                self.pending[index] = row
                index += 1
            yield row.prepared if row else None


def _near_the_first(run: _Run, rows: Iterable[Row]) -> Iterator[Row | None]:
    """Yield rows, each once it is near the first unfinished one, and None until then."""
    for number, row in enumerate(rows):
        while run.pending and number - next(iter(run.pending.values())).number >= READ_AHEAD:
            yield None
        yield row


def _groups(model: LoadedModel, pending: list[PendingRow], sorts: bool) -> Iterator[list[PendingRow]]:
    """Yield groups of rows of similar lengths, the shortest first."""
    for indexes in model.engine.group_by_length(row.prepared.request for row in pending):
        group = [pending[index] for index in indexes]
        yield sorted(group, key=lambda row: row.prepared.request.prompt_tokens) if sorts else group
