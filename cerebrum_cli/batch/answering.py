"""Answer the rows of a batch concurrently, and write each answer to the result as soon as it is finished."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from typing import Any

from cerebrum_cli.answers.vote import Votes
from cerebrum_cli.batch.rows import (
    THOUGHT_CLOSED_AT,
    Row,
    RowError,
    Rows,
    failed_object,
    output_object,
)
from cerebrum_cli.core.errors import CerebrumError, EngineError, Interrupted, PromptTooLong
from cerebrum_cli.core.events import Event, FinishEvent, RefusedEvent, RowCounts, RowEvent
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.core.settings import MODES, Layer, Settings
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.model.loading import generation_fingerprint
from cerebrum_cli.model.reply import (
    Reply,
    ReplyChannels,
    ReplyCollector,
    ReplyRequest,
    ReplyStream,
    mismatch_notice,
)
from cerebrum_cli.model.responder import Responder
from cerebrum_cli.model.voting import MajorityVote, SampleEvent, require_sampling, votes_object
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import Model
from cerebrum_cli.runs.result import Result

SORT_WINDOW = 4096  # rows sorted together so that shared prefixes meet; more would delay the first answer
READ_AHEAD = 16_384  # rows read past the first unfinished one where answers are in order, and so wait in memory for it
TOO_LONG = "context_length_exceeded"  # the error code of the OpenAI API
REFUSED = "invalid_request"
INCOMPLETE = "incomplete_output"  # truncated, blank or reasoning only, so that it does not match the grammar
NO_PROMPT = RowError(REFUSED, "there is no prompt")


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Options of all rows of a batch; the settings of a row take precedence.

    With `is_json`, the grammar is that of a JSON Schema: answers state no final answer. `modes` are the settings of
    rows that turn thinking on or off. `models` are names of the model in use, its label first.
    """

    settings: Settings
    models: tuple[str, ...]
    grammar: str | None = None
    is_json: bool = False
    votes: Votes | None = None
    ignore_eos: bool = False
    modes: Mapping[str, Settings] = field(default_factory=dict)

    def for_row(self, position: int, row: Layer) -> Settings:
        """The settings of a row: those of the batch, overridden by its own."""
        mode = self.modes.get(MODES[row["think"] != "off"], self.settings) if row.get("think") else self.settings
        if not row and mode.seed is None:
            return mode
        origins = {**mode.origins, **dict.fromkeys(row, "row")}
        return replace(mode, **{"seed": self.seed(position), **row}, origins=origins)

    def seed(self, position: int) -> int | None:
        """The seed of a row's first sample; no two samples of one run share a seed."""
        first, samples = self.settings.seed, self.votes.maximum if self.votes else 1
        return None if first is None else (first + position * samples) % SEEDS


@dataclass(slots=True)
class PendingRow:
    """A row whose reply or vote is running.

    A reply that is interrupted can be continued unless its seed is to give the same reply again, or something counts
    its samples or tokens from the beginning; `continued` is the number of tokens from before.
    """

    position: int
    row: Row
    request: Request
    options: BatchOptions
    vote: MajorityVote | None
    collector: ReplyCollector
    larger_context: str
    limits_thought: bool
    can_continue: bool
    continued: int

    def add_event(self, event: SampleEvent, replies: ReplyStream) -> dict[str, Any] | None:
        """Process an event of this row; return the output object when the answer is complete."""
        if self.vote:
            if not (self.vote.add_event(event, replies) and self.vote.is_over):
                return None
            reply = self.vote.reply
            return self.answer_object(reply) if reply else self.refused_object(self.vote.refusals[0])
        if isinstance(event, RefusedEvent):
            return self.refused_object(event)
        self.collector.emit(event)
        reply = self.collector.reply
        return None if reply is None or reply.finish.reason == "cancelled" else self.answer_object(reply)

    @property
    def cancelled_tokens(self) -> tuple[int, ...]:
        """The tokens of a reply that was cancelled and can be continued."""
        reply = self.collector.reply
        return reply.tokens or () if reply and self.can_continue else ()

    def refused_object(self, refused: RefusedEvent) -> dict[str, Any]:
        return failed_object(self.row, _row_error(refused.error), refused.origin)

    def answer_object(self, reply: Reply) -> dict[str, Any]:
        replies = [reply] if self.vote is None else self.vote.replies.values()
        states_answer = self.vote or not self.options.is_json
        notice = mismatch_notice(reply, self.larger_context) if self.options.grammar else None
        error = notice and RowError(INCOMPLETE, f"{notice.message}: {notice.hint}")
        return output_object(
            self.row,
            reply.finish.origin,
            text=reply.text,
            final_answer=(self.vote or reply).final_answer if states_answer else None,
            finish_reason=reply.finish.reason,
            prompt_tokens=reply.finish.prompt_tokens - self.continued or None,
            completion_tokens=self.continued + sum(each.finish.completion_tokens for each in replies),
            seed=None if self.continued else reply.finish.seed,
            reasoning=reply.reasoning,
            votes=self.vote and votes_object(self.vote),
            error=error and asdict(error),
            **({THOUGHT_CLOSED_AT: reply.thought_closed_at} if self.limits_thought else {}),
        )


def answer_rows(
    responder: Responder,
    rows: Rows,
    options: BatchOptions,
    result: Result,
    in_order: bool,
) -> Generator[Event, None, None]:
    """Answer the unfinished rows, or those of a mapping; yield all events, and a RowEvent for each row.

    Rows that cannot be answered get an error. On this machine, memory holds a window of SORT_WINDOW rows. Unless a
    reader needs the answers `in_order`, short rows of a window are answered before much longer ones, rows with a common
    prefix one after the other, and errors are written last: an error that concerns all rows is raised before. Servers
    get rows in the order of the input, as they can take them; `in_order`, no more than READ_AHEAD past the first
    unfinished one. The caller completes the result; after a cancel, rows are missing.
    """
    positions = rows if isinstance(rows, Mapping) else range(len(rows))
    answering = Answering(responder, rows, positions, options, result, responder.engine.cancel_scope())
    yield from responder.load()
    responder.check_settings(options.settings)
    yield answering.progress
    schedules_rows = responder.engine.schedules_rows
    yield from answering.run_steadily(in_order) if schedules_rows else answering.run_windows(in_order)


@dataclass(slots=True)
class Answering:
    """A batch that is running; `failed` are the objects of rows whose errors are not yet written, by position."""

    responder: Responder
    rows: Rows
    positions: Iterable[int]
    options: BatchOptions
    result: Result
    scope: CancelScope
    writes_errors_last: bool = True
    failed: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    @property
    def progress(self) -> RowEvent:
        done = len(self.result.finished) + len(self.failed)
        return RowEvent(done, len(self.rows), self.result.counts + RowCounts(len(self.failed)))

    def run_windows(self, in_order: bool) -> Iterator[Event]:
        """Answer the rows in windows, and those of a window in groups."""
        unfinished = self._unfinished()
        while window := list(islice(unfinished, SORT_WINDOW)):
            pending = [row for row in self._tokenize(window) if row]
            if self.scope.is_cancelled:
                return
            if in_order:
                yield from self._write_failed()
            yield self.progress
            for group in [pending] if in_order else _group_rows(self.responder, pending):
                if not self.scope.is_cancelled:
                    yield from self._generate(group)
            yield from self._write_failed()
            if self.scope.is_cancelled:
                return

    def run_steadily(self, in_order: bool) -> Iterator[Event]:
        """Answer the rows in one stream, read as the engine can take them; errors are written as they are found."""
        self.writes_errors_last = False
        unfinished = self._unfinished()
        yield from self._generate(self._tokenize(self._near_the_first(unfinished) if in_order else unfinished))
        yield self.progress

    def _unfinished(self) -> Iterator[int]:
        return (position for position in self.positions if position not in self.result.finished)

    def _near_the_first(self, positions: Iterable[int]) -> Iterator[int | None]:
        """Yield positions, each once it is near the first unfinished one, and None until then."""
        first, finished = 0, self.result.finished
        for position in positions:
            while position - first >= READ_AHEAD:
                if first in finished:
                    first += 1
                else:
                    yield None
            yield position

    def _tokenize(self, positions: Iterable[int | None]) -> Iterator[PendingRow | None]:
        """Yield rows ready to be answered, until a cancel, and None for None; the others have failed."""
        for position in positions:
            if self.scope.is_cancelled:
                return
            if position is None:
                yield None
                continue
            row = self.rows[position]
            unfinished = self.result.unfinished_tokens(position)
            tokenized = _tokenize_row(self.responder, position, row, self.options, unfinished)
            if isinstance(tokenized, PendingRow):
                yield tokenized
            elif self.writes_errors_last:
                self.failed.append((position, failed_object(row, tokenized)))
            else:
                self.result.write(position, failed_object(row, tokenized))

    def _write_failed(self) -> Iterator[Event]:
        failed, self.failed = self.failed, []
        for position, object in failed:
            self.result.write(position, object)
            yield self.progress

    def _generate(self, rows: Iterable[PendingRow | None]) -> Iterator[Event]:
        """Answer rows, and write each one when it is complete; None is for none now."""
        pending: dict[int, PendingRow] = {}

        def requests() -> Iterator[Request | None]:
            indexes = count()
            for row in rows:
                if row:
                    pending[next(indexes)] = row
                yield row.request if row else None

        with closing(self.responder.generate(requests(), self.scope)) as replies:
            for event in replies:
                yield event
                if not isinstance(event, SampleEvent):
                    continue
                index = event.sequence.request
                row = pending.get(index)
                if row is None:
                    continue
                if answer := row.add_event(event, replies):
                    del pending[index]
                    replies.forget(index)
                    self.result.write(row.position, answer)
                    yield self.progress
                elif isinstance(event, FinishEvent) and (tokens := row.cancelled_tokens):
                    self.result.keep_unfinished(row.position, self.responder.drop_partial_character(tokens))


def batch_fingerprint(options: BatchOptions, model: Model, library: Library) -> dict[str, Any]:
    """Everything the answers depend on besides the prompts, by readable names."""
    votes = options.votes
    return {
        **generation_fingerprint(options.settings, options.grammar, model, library),
        "votes": votes and str(votes),
        "ignore eos": options.ignore_eos,
        **{
            mode.replace("_", " "): settings.samplers
            for mode, settings in options.modes.items()
            if settings.samplers != options.settings.samplers
        },
    }


def write_row_errors(rows: Rows, result: Result) -> None:
    """Write the errors of the unfinished rows, where none of them needs the model."""
    for position in range(len(rows)):
        if position not in result.finished:
            row = rows[position]
            result.write(position, failed_object(row, row.error or NO_PROMPT))


def _group_rows(responder: Responder, pending: Sequence[PendingRow]) -> Iterator[list[PendingRow]]:
    """Yield groups of rows of similar lengths, the shortest first; the rows of a group are sorted by their tokens."""
    for group in responder.engine.group_by_length(row.request for row in pending):
        yield sorted((pending[index] for index in group), key=lambda row: row.request.prompt_tokens)


def _tokenize_row(
    responder: Responder, position: int, row: Row, options: BatchOptions, unfinished: tuple[int, ...]
) -> PendingRow | RowError:
    if row.conversation is None:
        return row.error or NO_PROMPT
    if row.model and (error := _model_error(row.model, (*options.models, *responder.engine.served_models))):
        return error
    settings = options.for_row(position, row.settings)
    conversation = row.conversation
    if conversation.system_prompt is None and settings.system is not None:
        conversation = replace(conversation, system_prompt=settings.system)
    if unfinished and settings.max_tokens is not None:
        settings = replace(settings, max_tokens=settings.max_tokens - len(unfinished))
    vote = MajorityVote(options.votes) if options.votes else None
    request = ReplyRequest(
        conversation, settings, options.grammar, prefix_tokens=unfinished, ignore_eos=options.ignore_eos
    )
    try:
        if vote:
            require_sampling(settings)
        tokenized = responder.tokenize_request(vote.with_samples(request, responder.engine) if vote else request)
    except (EngineError, Interrupted):  # these concern the whole batch
        raise
    except CerebrumError as error:
        return _row_error(error)
    limits_thought = settings.thought_limit is not None
    is_bound = bool(vote or options.grammar or limits_thought) or settings.seed is not None
    channels = tokenized.channels if isinstance(tokenized.channels, ReplyChannels) else None
    collector = ReplyCollector()
    collector.begin(unfinished, channels.split_prefix()[1] if channels else ())
    return PendingRow(
        position,
        row,
        tokenized.compact(),
        options,
        vote,
        collector,
        responder.larger_context,
        limits_thought,
        can_continue=channels is not None and not is_bound,
        continued=len(unfinished),
    )


def _model_error(model: str, names: Sequence[str]) -> RowError | None:
    """Error for a row that requests a model by none of these names."""
    if model.casefold() in map(str.casefold, names):
        return None
    return RowError(REFUSED, f"invalid `model`: {model!r}; this batch uses {names[0]}: remove the key")


def _row_error(error: CerebrumError) -> RowError:
    kind = TOO_LONG if isinstance(error, PromptTooLong) else REFUSED
    return RowError(kind, f"{error.message}: {error.hint}" if error.hint else error.message)
