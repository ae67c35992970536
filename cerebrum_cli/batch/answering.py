"""Answer the rows of a batch, and write each answer to the result as soon as it is finished."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cerebrum_cli.batch.rows import (
    REASONING_CLOSED_AT,
    InputRow,
    RowError,
    Rows,
    output_object,
)
from cerebrum_cli.core.errors import PromptTooLong, UsageError
from cerebrum_cli.core.events import Event, RefusedEvent
from cerebrum_cli.core.row_events import RowEvent
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.core.settings import MODES, Layer, Settings
from cerebrum_cli.library.installed import Library
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.replies.concurrent_rows import Row, RowOutcome, run_rows
from cerebrum_cli.replies.loaded_model import LoadedModel
from cerebrum_cli.replies.reply import Ask, Reply, reply_notice
from cerebrum_cli.replies.source import generation_fingerprint
from cerebrum_cli.replies.tally import Votes
from cerebrum_cli.replies.text_tokens import drop_partial_character
from cerebrum_cli.replies.voting import MajorityVote
from cerebrum_cli.results.result import Result
from cerebrum_cli.results.vote_objects import votes_object

TOO_LONG = "context_length_exceeded"  # the error code of the OpenAI API
REFUSED = "invalid_request"
INCOMPLETE = "incomplete_output"  # truncated, blank or reasoning only, so that it does not match the grammar


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
        mode = self.modes.get(MODES[row["think"] != "off"], self.settings) if row.get("think") else self.settings
        if not row and mode.seed is None:
            return mode
        return replace(
            mode, **{"seed": self.seed(position), **row}, origins={**mode.origins, **dict.fromkeys(row, "row")}
        )

    def seed(self, position: int) -> int | None:
        """The seed of a row's first sample; no two samples of one run share a seed."""
        first, samples = self.settings.seed, self.votes.maximum if self.votes else 1
        return None if first is None else (first + position * samples) % SEEDS


def answer_rows(
    model: LoadedModel,
    rows: Rows,
    options: BatchOptions,
    result: Result,
    in_order: bool,
) -> Generator[Event, None, None]:
    """Answer the unfinished rows, or those of a mapping; yield all events, and a RowEvent for each row.

    Rows that cannot be answered get an error. The caller completes the result; after a cancel, rows are missing.
    """
    scope = model.engine.cancel_scope
    yield from model.load()
    model.check_settings(options.settings)
    yield RowEvent(len(result.finished), len(rows), result.counts)
    for event in run_rows(model, rows_to_ask(model, rows, options, result), scope, in_order):
        if not isinstance(event, RowOutcome):
            yield event
            continue
        (position, _), reply = event.row.id, event.outcome
        if isinstance(reply, Reply) and reply.finish_reason == "cancelled":
            if reply.tokens and not model.format.verbatim and can_continue(event.row):
                result.unfinished[position] = drop_partial_character(model.engine.vocabulary, reply.tokens)
            continue
        result.write(position, row_object(event.row, reply, options, model.engine.larger_context))
        yield RowEvent(len(result.finished), len(rows), result.counts)


def rows_to_ask(model: LoadedModel, rows: Rows, options: BatchOptions, result: Result) -> Iterator[Row]:
    positions = rows if isinstance(rows, Mapping) else range(len(rows))
    names = (*options.models, *model.engine.served_models)
    for position in positions:
        if position not in result.finished:
            yield row_to_ask(position, rows[position], options, names, result.unfinished.get(position, ()))


def row_to_ask(
    position: int, row: InputRow, options: BatchOptions, models: Sequence[str], unfinished: tuple[int, ...]
) -> Row:
    """What is asked for a row, which continues the `unfinished` tokens; `models` are names of the model."""
    if row.model is not None and row.model.casefold() not in map(str.casefold, models):
        message = f"invalid `model`: {row.model!r}; this batch uses {models[0]}: remove the key"
        row = replace(row, error=RowError(REFUSED, message))
    if row.error or row.conversation is None:
        return Row((position, row), UsageError("the row is invalid"))
    settings = options.for_row(position, row.settings)
    vote = MajorityVote(options.votes) if options.votes else None
    if vote:
        try:
            settings = settings.for_samples("--votes")
        except UsageError as problem:
            return Row((position, row), problem)
    conversation = row.conversation
    if conversation.system_prompt is None and settings.system is not None:
        conversation = replace(conversation, system_prompt=settings.system)
    if unfinished and settings.max_tokens is not None:
        settings = replace(settings, max_tokens=settings.max_tokens - len(unfinished))
    request = Ask(conversation, settings, options.grammar, prefix_tokens=unfinished, ignore_eos=options.ignore_eos)
    return Row((position, row), request, vote)


def can_continue(row: Row) -> bool:
    """Whether an interrupted reply may continue in the next run.

    Not if its seed is to give the same reply again, or something counts its samples or tokens from the beginning.
    """
    assert isinstance(row.request, Ask)
    settings = row.request.settings
    return not (row.vote or row.request.grammar) and settings.reasoning_limit is None and settings.seed is None


def row_object(
    row: Row, outcome: Reply | MajorityVote | RefusedEvent, options: BatchOptions, larger_context: str
) -> dict[str, Any]:
    input_row: InputRow = row.id[1]
    vote = outcome if isinstance(outcome, MajorityVote) else None
    reply = vote.reply if vote else outcome
    if vote and reply is None:
        reply = vote.refusals[0]
    if isinstance(reply, RefusedEvent):
        kind = TOO_LONG if isinstance(reply.error, PromptTooLong) else REFUSED
        message = f"{reply.error.message}: {reply.error.hint}" if reply.error.hint else reply.error.message
        return output_object(input_row, reply.origin, error=asdict(input_row.error or RowError(kind, message)))
    assert isinstance(reply, Reply) and isinstance(row.request, Ask)
    continued, limits_reasoning = len(row.request.prefix_tokens), row.request.settings.reasoning_limit is not None
    states_answer = vote or not options.is_json
    samples = list(vote.replies.values()) if vote else [reply]
    notice = reply_notice(reply, larger_context, has_grammar=True) if options.grammar else None
    error = notice and RowError(INCOMPLETE, f"{notice.message}: {notice.hint}")
    return output_object(
        input_row,
        reply.finish.origin,
        text=reply.text,
        final_answer=(vote or reply).final_answer if states_answer else None,
        finish_reason=reply.finish.reason,
        prompt_tokens=reply.finish.prompt_tokens - continued or None,
        completion_tokens=continued + sum(sample.total_tokens for sample in samples),
        seed=None if continued else reply.finish.seed,
        reasoning=reply.reasoning,
        votes=votes_object(vote) if vote else None,
        error=error and asdict(error),
        **({REASONING_CLOSED_AT: reply.reasoning_closed_at} if limits_reasoning else {}),
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
