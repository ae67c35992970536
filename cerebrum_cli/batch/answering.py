"""Answer the rows of a batch, and write each answer to the result as soon as it is finished."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cerebrum_cli.answers.vote import Votes
from cerebrum_cli.batch.rows import (
    THOUGHT_CLOSED_AT,
    InputRow,
    RowError,
    Rows,
    failed_object,
    output_object,
)
from cerebrum_cli.core.errors import CerebrumError, PromptTooLong, UsageError
from cerebrum_cli.core.events import Event
from cerebrum_cli.core.row_events import RowCounts, RowEvent
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.core.settings import MODES, Layer, Settings
from cerebrum_cli.model.concurrent_rows import RefusedRow, Row, RowOutcome, run_rows
from cerebrum_cli.model.loaded_model import LoadedModel
from cerebrum_cli.model.reply import Reply, ReplyRequest, mismatch_notice
from cerebrum_cli.model.source import generation_fingerprint
from cerebrum_cli.model.voting import MajorityVote, require_sampling, votes_object
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import InstalledModel
from cerebrum_cli.runs.result import Result

TOO_LONG = "context_length_exceeded"  # the error code of the OpenAI API
REFUSED = "invalid_request"
INCOMPLETE = "incomplete_output"  # truncated, blank or reasoning only, so that it does not match the grammar
NO_PROMPT = RowError(REFUSED, "there is no prompt")
MAX_HELD_ERRORS = 4096


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


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A row by its position; it continues `continued` tokens of an interrupted run.

    A reply that is interrupted can be continued unless its seed is to give the same reply again, or something counts
    its samples or tokens from the beginning. A row with an `error` is not asked.
    """

    position: int
    row: InputRow
    limits_thought: bool = False
    can_continue: bool = False
    continued: int = 0
    error: RowError | None = None


def answer_rows(
    model: LoadedModel,
    rows: Rows,
    options: BatchOptions,
    result: Result,
    in_order: bool,
) -> Generator[Event, None, None]:
    """Answer the unfinished rows, or those of a mapping; yield all events, and a RowEvent for each row.

    Rows that cannot be answered get an error. A model on this machine holds errors back until its first answer, since
    an error that concerns all rows is raised before that. The caller completes the result; after a cancel, rows are
    missing.
    """
    scope = model.engine.cancel_scope()
    yield from model.load()
    model.check_settings(options.settings)
    unwritten: list[tuple[int, dict[str, Any]]] = []
    holds_errors = not (in_order or model.engine.schedules_rows)

    def progress() -> RowEvent:
        return RowEvent(len(result.finished) + len(unwritten), len(rows), result.counts + RowCounts(len(unwritten)))

    yield progress()
    for event in run_rows(model, rows_to_ask(model, rows, options, result), scope, in_order):
        if not isinstance(event, RowOutcome):
            yield event
            continue
        asked: AskedRow = event.row.id
        reply = event.outcome
        if isinstance(reply, Reply) and reply.finish_reason == "cancelled":
            if asked.can_continue and reply.tokens:
                result.keep_unfinished(asked.position, model.drop_partial_character(reply.tokens))
            continue
        unwritten.append((asked.position, row_object(asked, reply, options, model.larger_context)))
        holds_errors = holds_errors and isinstance(reply, RefusedRow) and len(unwritten) < MAX_HELD_ERRORS
        if not holds_errors:
            write_all(unwritten, result)
        yield progress()
    if unwritten:
        write_all(unwritten, result)
        yield progress()


def write_all(objects: list[tuple[int, dict[str, Any]]], result: Result) -> None:
    """Write the objects of rows, and remove them from the list."""
    for position, object in objects:
        result.write(position, object)
    objects.clear()


def rows_to_ask(model: LoadedModel, rows: Rows, options: BatchOptions, result: Result) -> Iterator[Row]:
    """Yield the unfinished rows, each read when it is needed."""
    positions = rows if isinstance(rows, Mapping) else range(len(rows))
    names = (*options.models, *model.engine.served_models)
    for position in positions:
        if position not in result.finished:
            unfinished = result.unfinished_tokens(position)
            yield row_to_ask(position, rows[position], options, names, unfinished, not model.format.verbatim)


def row_to_ask(
    position: int,
    row: InputRow,
    options: BatchOptions,
    models: Sequence[str],
    unfinished: tuple[int, ...],
    can_continue: bool,
) -> Row:
    """What is asked for a row, which continues the `unfinished` tokens; `models` are names of the model."""
    error = row_problem(row, models)
    if error or row.conversation is None:
        return Row(AskedRow(position, row, error=error or NO_PROMPT), UsageError("the row is invalid"))
    settings = options.for_row(position, row.settings)
    vote = MajorityVote(options.votes) if options.votes else None
    if vote:
        try:
            require_sampling(settings)
        except UsageError as problem:
            return Row(AskedRow(position, row), problem)
    conversation = row.conversation
    if conversation.system_prompt is None and settings.system is not None:
        conversation = replace(conversation, system_prompt=settings.system)
    if unfinished and settings.max_tokens is not None:
        settings = replace(settings, max_tokens=settings.max_tokens - len(unfinished))
    limits_thought = settings.thought_limit is not None
    is_bound = bool(vote or options.grammar or limits_thought) or settings.seed is not None
    request = ReplyRequest(
        conversation, settings, options.grammar, prefix_tokens=unfinished, ignore_eos=options.ignore_eos
    )
    return Row(AskedRow(position, row, limits_thought, can_continue and not is_bound, len(unfinished)), request, vote)


def row_problem(row: InputRow, models: Sequence[str]) -> RowError | None:
    """The error of a row that is invalid, or requests a model by none of these names; None for any other."""
    if row.conversation is None or row.model is None or row.model.casefold() in map(str.casefold, models):
        return row.error
    return RowError(REFUSED, f"invalid `model`: {row.model!r}; this batch uses {models[0]}: remove the key")


def row_object(
    asked: AskedRow, outcome: Reply | MajorityVote | RefusedRow, options: BatchOptions, larger_context: str
) -> dict[str, Any]:
    """The output object of a row: its reply, the winner of its vote, or its error."""
    vote = outcome if isinstance(outcome, MajorityVote) else None
    reply = vote.reply if vote else outcome
    if vote and reply is None:
        reply = RefusedRow(vote.refusals[0].error, vote.refusals[0].origin)
    if isinstance(reply, RefusedRow):
        return failed_object(asked.row, asked.error or row_error(reply.error), reply.origin)
    assert isinstance(reply, Reply)
    states_answer = vote or not options.is_json
    samples = vote.replies.values() if vote else [reply]
    notice = mismatch_notice(reply, larger_context) if options.grammar else None
    error = notice and RowError(INCOMPLETE, f"{notice.message}: {notice.hint}")
    return output_object(
        asked.row,
        reply.finish.origin,
        text=reply.text,
        final_answer=(vote or reply).final_answer if states_answer else None,
        finish_reason=reply.finish.reason,
        prompt_tokens=reply.finish.prompt_tokens - asked.continued or None,
        completion_tokens=asked.continued + sum(sample.finish.completion_tokens for sample in samples),
        seed=None if asked.continued else reply.finish.seed,
        reasoning=reply.reasoning,
        votes=votes_object(vote) if vote else None,
        error=error and asdict(error),
        **({THOUGHT_CLOSED_AT: reply.thought_closed_at} if asked.limits_thought else {}),
    )


def batch_fingerprint(options: BatchOptions, model: InstalledModel, library: Library) -> dict[str, Any]:
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


def row_error(error: CerebrumError) -> RowError:
    kind = TOO_LONG if isinstance(error, PromptTooLong) else REFUSED
    return RowError(kind, f"{error.message}: {error.hint}" if error.hint else error.message)
