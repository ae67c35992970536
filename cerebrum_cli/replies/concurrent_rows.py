"""Answer many rows concurrently, and yield each reply or vote as it finishes.

Rows are read in windows. On this machine, those of similar length run together, the shortest first, and those with a
common prefix one after the other. Servers get rows in the given order, as they can take them, without windows unless
the answers are needed in order.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.errors import CerebrumError, EngineError, Interrupted
from cerebrum_cli.core.events import (
    CallEvent,
    Event,
    Events,
    FinishEvent,
    NoticeEvent,
    RefusedEvent,
    SequenceId,
)
from cerebrum_cli.core.token_ids import NO_TOKEN
from cerebrum_cli.engine.engine import CancelScope, Completions
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.replies.majority_vote import Continuation, MajorityVote, Outcome, ReplyEvent, Row
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.replies.reply_controls import ReplyControls
from cerebrum_cli.replies.tally import Program

if TYPE_CHECKING:
    from cerebrum_cli.replies.interface import Model
    from cerebrum_cli.replies.tool_loop import ToolLoop

Check: TypeAlias = Callable[[str], Program | None]  # runs the program in a reply; None if it is cancelled
SORT_WINDOW = 4096  # rows sorted together so that shared prefixes meet; more would delay the first answer


class Continued(NamedTuple):
    """A row that asks for the next round of a sample whose functions have been called, by its loop; or a new one."""

    row: Row
    sample: int
    loop: ToolLoop | None


EventsAndOutcomes: TypeAlias = "Iterator[Event | Outcome]"


@dataclass(slots=True)
class PendingRow:
    """A row that is running, and the replies to it so far; `samples` of them have not finished.

    `check` runs the programs that follow the samples, while the engine keeps generating. With a `loop`, it is the next
    round of a sample, the `first` one, whose functions have been called.
    """

    row: Row
    request: Request
    samples: int
    check: Check | None
    first: int = 0
    loop: ToolLoop | None = None
    replies: dict[SequenceId, Reply] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        if self.row.vote:
            return self.row.vote.is_over
        return self.samples == 0

    def add_event(self, event: ReplyEvent, completions: Completions) -> EventsAndOutcomes:
        """Process an event of this row; yield changes of its tally, and what has finished."""
        sequence, vote = event.sequence, self.row.vote
        outcome = self._outcome(event)
        if outcome is None:
            return
        if vote:
            yield from self._count(vote, vote.add(sequence, outcome, completions))
            return
        self.samples -= 1
        yield Outcome(self.row, self.first + sequence.sample, outcome)

    def _count(self, vote: MajorityVote, has_changed: bool) -> EventsAndOutcomes:
        if has_changed:
            yield vote.tally_event
        if vote.is_over:
            yield Outcome(self.row, 0, vote)

    def _outcome(self, event: ReplyEvent) -> Reply | RefusedEvent | None:
        """A sample that finishes with this event; None if it continues, or waits for its program."""
        if isinstance(event, RefusedEvent):
            return event
        sequence = event.sequence
        if sequence not in self.replies:
            self.replies[sequence] = self._begin_reply(sequence)
        reply = self.replies[sequence]
        reply.emit(event)
        if not isinstance(event, FinishEvent) or event.is_followed:
            return None
        del self.replies[sequence]
        if not sequence.turn:
            return reply
        return self._with_program(self.replies.pop(sequence._replace(turn=0)), reply)

    def _with_program(self, reply: Reply, written: Reply) -> Reply | None:
        """The sample that a program was written after, when the program has run; None if that is cancelled."""
        assert self.check
        if written.finish.reason == "cancelled":
            return None
        reply.program_reply = written
        reply.program = self.check(written.text)
        if reply.program is None:
            return None
        return reply

    def _begin_reply(self, sequence: SequenceId) -> Reply:
        asked = self.row.request
        if sequence.turn or not isinstance(asked, Ask):
            return Reply()
        reply = Reply(None, self.loop.conversation if self.loop else asked.conversation, asked.grammar)
        if self.request.rules.prefix_tokens:
            reply.begin(*self.request.beginning)
        return reply


def run_rows(
    model: Model,
    rows: Iterable[Row],
    scope: CancelScope | None = None,
    in_order: bool = False,
) -> Generator[Event | Outcome, None, None]:
    """Answer rows; yield all events of loading and generating, and an Outcome for all that finishes.

    Rows that cannot be asked are refused as they are read. If a reader needs the rows `in_order`, no row overtakes one
    of another window. A model on this machine gets rows sorted by their tokens, for their common prefixes. Replies
    that call functions continue after the rows of their window, or before other rows on servers. If the `scope` is
    cancelled, rows are missing. Raises EngineError.
    """
    run = _Run(model, scope or model.engine.cancel_scope)
    yield from model.load()
    rows = iter(rows)
    if model.is_remote and not in_order:
        yield from run.answer(run.prepared(rows))
    while not run.scope.is_set():
        window: Sequence[Row | Continued] = run.take_continued() or list(islice(rows, SORT_WINDOW))
        if not window:
            return
        pending = list(run.prepared(window))
        if run.scope.is_set():
            return
        yield from run.take_refused()
        if in_order or model.is_remote:
            yield from run.answer(pending)
            continue
        for indices in model.engine.group_by_length([row.request for row in pending]):
            group = [pending[index] for index in indices]
            group.sort(key=lambda row: row.request.prompt_tokens)
            if not run.scope.is_set():
                yield from run.answer(group)


class _Run:
    """Rows that are running, those that were refused as they were read, and samples that continue after calls."""

    def __init__(self, model: Model, scope: CancelScope) -> None:
        self.scope = scope
        self._model = model
        self._check: Check | None = None  # once a row needs it
        self._refused: list[Outcome] = []
        self._continued: list[Continued] = []

    def prepared(self, rows: Iterable[Row | Continued]) -> Iterator[PendingRow]:
        for new in rows:
            for row in (*self.take_continued(), new):
                if self.scope.is_set():
                    return
                if pending := self._prepare(row):
                    yield pending

    def _prepare(self, new: Row | Continued) -> PendingRow | None:
        row, first, loop = new if isinstance(new, Continued) else Continued(new, 0, None)
        try:
            request = self._request_of(row)
        except (EngineError, Interrupted):  # these concern all rows
            raise
        except CerebrumError as error:
            error.__context__ = None  # the frames of a traceback hold the tokens of the prompt
            refused = RefusedEvent(SequenceId(0), error.with_traceback(None))
            self._refused.append(Outcome(row, first, refused))
            return None
        return PendingRow(row, request, request.ask.n, self._check, first, loop)

    def _request_of(self, row: Row) -> Request:
        asked = row.request
        match asked:
            case CerebrumError():
                raise asked
            case Continuation():
                return prepare_text(self._model, asked)
        if vote := row.vote:
            asked = replace(asked, n=vote.requested, max_n=vote.bounds[1])
        if asked.tools:
            asked = replace(asked, tools=(), grammar=None)  # which would suppress calls
        request = self._model.prepare_reply(asked)
        if not (row.checks or (vote and vote.tally.votes.checks)):
            return request
        from cerebrum_cli.replies.checking import create_check, with_check

        self._check = self._check or create_check(self.scope)
        return with_check(self._model, request, asked)

    def take_refused(self) -> list[Outcome]:
        refused, self._refused = self._refused, []
        return refused

    def take_continued(self) -> list[Continued]:
        continued, self._continued = self._continued, []
        return continued

    def answer(self, rows: Iterable[PendingRow]) -> EventsAndOutcomes:
        pending: dict[int, PendingRow] = {}
        requests = (pending.setdefault(index, row).request for index, row in enumerate(rows))
        with closing(self._model.engine.complete(requests, self.scope)) as completions:
            for event in completions:
                if isinstance(event, FinishEvent):
                    self._model.note_closed_list(event)
                yield from self._model.take_notices()
                yield event
                yield from self.take_refused()
                if isinstance(event, ReplyEvent) and (row := pending.get(event.sequence.request)):
                    for happened in row.add_event(event, completions):
                        if isinstance(happened, Outcome) and isinstance(happened.result, Reply):
                            yield from self._after_calls(row, happened, happened.result)
                        else:
                            yield happened
                    if row.is_over:
                        del pending[event.sequence.request]  # all rows may not fit into memory
        yield from self.take_refused()

    def _after_calls(self, pending: PendingRow, outcome: Outcome, reply: Reply) -> EventsAndOutcomes:
        """Run the calls of a reply, and yield them; if it continues with their results, there is no outcome yet."""
        row, loop = pending.row, pending.loop
        if isinstance(row.request, Ask) and row.request.tools:
            from cerebrum_cli.replies.tool_loop import ToolLoop

            loop = ToolLoop(self._model, row.request)
        if loop is None or reply.finish.reason == "cancelled":
            yield outcome
            return
        if self.scope.is_set():  # a function may take a long time
            return
        for event in loop.follow(reply):
            if isinstance(event, NoticeEvent):
                self._model.note(event)
            elif isinstance(event, CallEvent):
                yield event
        if loop.is_over:
            reply.emit(reply.finish._replace(completion_tokens=loop.completion_tokens))
            yield outcome
            return
        asked = loop.next
        request = replace(asked, settings=replace(asked.settings, seed=reply.finish.seed), n=1)
        self._continued.append(Continued(replace(row, request=request), outcome.sample, loop))


def prepare_text(model: Model, text: Continuation) -> Request:
    """The request to continue a text. Raises UsageError as `check_settings` does."""
    settings = text.settings
    model.check_settings(replace(settings, stop=()))  # those of a task are for any model
    raw = ReplyControls(model.engine.vocabulary, model.prompts.format.without_format(settings.system))
    asked = Ask(settings=settings, n=text.n)
    rules, controls = raw.create(asked, text.text, "", model.answer_now)
    return Request(
        array("i", text.tokens),
        settings,
        asked,
        is_visible=model.prompts.is_visible if raw.format.markups else NO_TOKEN,
        controls=controls,
        rules=rules,
    )


def vote_events(model: Model, request: Ask, vote: MajorityVote) -> Events:
    """Yield the events of all samples, and each new tally. Raises the error of a sample if all were refused."""
    with closing(run_rows(model, [Row(0, request, vote)])) as events:
        for event in events:
            if not isinstance(event, Outcome):
                yield event
            elif isinstance(event.result, RefusedEvent):
                raise event.result.error
    if vote.refusals:
        error = vote.refusals[0].error
        if not vote.replies:
            raise error
        yield NoticeEvent(f"{len(vote.refusals)} of {vote.tally.samples} samples failed: {error.message}", error.hint)
