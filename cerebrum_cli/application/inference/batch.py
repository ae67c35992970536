"""Many questions, answered many at a time; each answer goes where the result is kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from cerebrum_cli.answers.vote import Votes
from cerebrum_cli.application.inference.format_choice import chosen_format
from cerebrum_cli.application.inference.reply import Reply, ReplyCollector
from cerebrum_cli.application.inference.responder import GenerationRequest, Replies, Responder, TokenizedRequest
from cerebrum_cli.application.inference.voting import MajorityVote, require_sampling, votes_object
from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.batches.result import Result
from cerebrum_cli.batches.rows import OUTPUT_KEYS, Row, RowError, failed_object
from cerebrum_cli.core.errors import CerebrumError, EngineError, Interrupted, PromptTooLong
from cerebrum_cli.core.events import Event, FinishEvent, RefusedEvent, RowEvent, TokenEvent
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.core.settings import Settings

ANSWERING = ("system", "max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop", "ctx")
WINDOW = 4096  # rows that are read and put in order together: more would keep the first of them waiting
TOO_LONG = "context_length_exceeded"  # as OpenAI calls it
REFUSED = "invalid_request"
NOT_ASKED = RowError(REFUSED, "there is no prompt")


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How all rows of a batch are answered, where they do not say otherwise themselves."""

    settings: Settings
    grammar: str | None = None
    votes: Votes | None = None
    early_stop: bool = True
    ignore_eos: bool = False

    def seed(self, position: int) -> int | None:
        """Return the seed of a row: from the one given on, each chain has its own, or all rows would draw alike."""
        given, chains = self.settings.seed, self.votes.maximum if self.votes else 1
        return None if given is None else (given + position * chains) % SEEDS


@dataclass(slots=True)
class PendingRow:
    """A row that is being answered, by one reply or by a vote."""

    position: int
    row: Row
    prepared: TokenizedRequest
    poll: MajorityVote | None
    gatherer: ReplyCollector

    def take(self, event: TokenEvent | FinishEvent, replies: Replies) -> dict[str, Any] | None:
        """Take an event of this row; return the object to be written once it has an answer, once."""
        if self.poll is None:
            self.gatherer.emit(event)
            reply = self.gatherer.reply
            return None if reply is None or reply.finish.reason == "cancelled" else self.object(reply)
        moved = self.poll.take(event, replies)
        if not (moved and self.poll.is_over and self.poll.reply):
            return None
        return self.object(self.poll.reply)

    def forget(self) -> None:
        """Let go of what was said: a batch may be larger than memory."""
        self.poll, self.gatherer = None, ReplyCollector()

    def object(self, reply: Reply) -> dict[str, Any]:
        """Return the object of an answered row, its keys those of OUTPUT_KEYS in their order."""
        spent = [reply] if self.poll is None else self.poll.replies.values()
        values = (
            self.row.id,
            self.row.prompt,
            reply.text,
            (self.poll or reply).final_answer,
            reply.finish.reason,
            reply.finish.prompt_tokens,
            sum(each.finish.completion_tokens for each in spent),
            reply.finish.seed,
            reply.reasoning,
            self.poll and votes_object(self.poll),
            None,
        )
        return dict(zip(OUTPUT_KEYS, values, strict=True))


def answer_rows(
    responder: Responder, rows: Sequence[Row], manner: BatchOptions, result: Result, in_order: bool
) -> Generator[Event, None, None]:
    """Answer the rows a result does not have yet; yield all events, and a RowEvent whenever a row is finished.

    A row that cannot be asked gets its error. Rows are answered so that those which begin alike follow each other, or
    where somebody waits for them `in_order`. The result is not completed: where this was interrupted it is not whole.
    """
    yield from responder.load()
    yield RowEvent(result.done, len(rows), result.failed)
    left = [(position, row) for position, row in enumerate(rows) if position not in result.finished]
    refused: list[tuple[int, RowError]] = []
    for begin in range(0, len(left), WINDOW):
        found = [(at, _opened(responder, at, row, manner)) for at, row in left[begin : begin + WINDOW]]
        opened = [one for _, one in found if isinstance(one, PendingRow)]
        refused += [(at, error) for at, error in found if isinstance(error, RowError)]
        if in_order:
            yield from _refused(rows, refused, result)
            refused.clear()
        else:
            opened.sort(key=lambda one: one.prepared.request.prompt_tokens)
        yield RowEvent(result.done, len(rows), result.failed + len(refused))
        yield from _answered(responder, opened, result, len(rows), len(refused))
        if any(one.position not in result.finished for one in opened):  # it was cancelled
            return
    yield from _refused(rows, refused, result)  # last: what is wrong with all, as with a grammar, is known by then


def record_of(manner: BatchOptions, model: Model, file: Model, library: Library) -> dict[str, Any]:
    """Return what answers depend on beside their questions, by names that can be told; `file` answers for the model."""
    values, votes = asdict(manner.settings), manner.votes
    return {
        "model": model.reference,
        "model file": library.identity(file),
        "format": chosen_format(manner.settings.format, model.known_format, model.header.chat_template),
        **{key.replace("_", " "): values[key] for key in ANSWERING},
        "grammar": manner.grammar and sha256(manner.grammar.encode()).hexdigest(),
        "votes": votes and f"{votes.minimum}..{votes.maximum}",
        "early stop": votes and manner.early_stop,
        "ignore eos": manner.ignore_eos,
    }


def refuse_rows(rows: Sequence[Row], result: Result) -> None:
    """Write the errors of rows that cannot be asked, where no others are left."""
    for position, row in enumerate(rows):
        if position not in result.finished:
            result.write(position, failed_object(row, row.error or NOT_ASKED))


def _refused(rows: Sequence[Row], refused: Sequence[tuple[int, RowError]], result: Result) -> Iterator[Event]:
    for position, error in refused:
        result.write(position, failed_object(rows[position], error))
        yield RowEvent(result.done, len(rows), result.failed)


def _answered(
    responder: Responder, opened: Sequence[PendingRow], result: Result, total: int, refused: int
) -> Iterator[Event]:
    """Answer rows, and write each when it has its answer; `refused` ones are told of, and written later."""
    if not opened:
        return
    with closing(responder.replies(one.prepared for one in opened)) as replies:
        for event in replies:
            yield event
            if not isinstance(event, (TokenEvent, FinishEvent, RefusedEvent)):
                continue
            one = opened[event.sequence.request]
            if one.position in result.finished:
                continue
            if isinstance(event, RefusedEvent):
                replies.abort(event.sequence.request)
                answered: dict[str, Any] | None = failed_object(one.row, _row_error(event.error))
            else:
                answered = one.take(event, replies)
            if answered:
                one.forget()
                result.write(one.position, answered)
                yield RowEvent(result.done, total, result.failed + refused)


def _opened(responder: Responder, position: int, row: Row, manner: BatchOptions) -> PendingRow | RowError:
    """Return a row ready to be asked, or why it cannot be."""
    if row.conversation is None:
        return row.error or NOT_ASKED
    settings = replace(manner.settings, **{"seed": manner.seed(position), **row.settings})
    conversation = row.conversation
    if conversation.system_prompt is None:
        conversation = replace(conversation, system_prompt=settings.system)
    poll = MajorityVote(manner.votes, manner.early_stop) if manner.votes else None
    asked = GenerationRequest(conversation, settings, manner.grammar, ignore_eos=manner.ignore_eos)
    try:
        if poll:
            require_sampling(settings)
        prepared = responder.tokenize_request(poll.put(asked) if poll else asked)
    except (EngineError, Interrupted):  # of all rows
        raise
    except CerebrumError as error:
        return _row_error(error)
    return PendingRow(position, row, prepared, poll, ReplyCollector())


def _row_error(error: CerebrumError) -> RowError:
    kind = TOO_LONG if isinstance(error, PromptTooLong) else REFUSED
    return RowError(kind, f"{error.message}: {error.hint}" if error.hint else error.message)
