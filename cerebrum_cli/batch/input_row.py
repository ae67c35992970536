"""One row of a batch: its prompt and settings, or its error; and the object that is written for it.

Errors of a row by `type`; errors while generating have other types:

    invalid_utf8        the line is not UTF-8
    invalid_json        the line is not JSON
    invalid_request     not an object, or a value that has the wrong type, is contradictory or unsupported
    invalid_messages    a list of messages that does not end with a question
    invalid_setting     a sampling setting of the wrong type, or out of range
    invalid_record      a record of a table with more or fewer fields than the header
    unknown_field       the template names a field the row does not have
    no_prompt           the prompt is missing or blank
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import TRUNCATED as TRUNCATED_REASONS, Origin, RefusedEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.core.row_fields import INCOMPLETE, InvalidRow, RowError, RowId
from cerebrum_cli.core.text import Texts, text_digest, well_formed
from cerebrum_cli.replies.majority_vote import MajorityVote, Outcome
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.results.rows import ResultRows, RowFlag, Table

OUTPUT_KEYS = (
    "id",
    "prompt",
    "text",
    "final_answer",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "seed",
    "reasoning",
    "votes",
    "error",
)
REASONING_CLOSED_AT = "reasoning_closed_at"  # a key of replies whose reasoning is limited
LINE, REQUEST = "line", "request"  # keys of rows that failed, and of those that ask for more than their prompt
INPUT = "input"  # the key of a row's input in its output object
_REQUEST_DIGITS = 12


@frozen
class InputRow:
    """One question of a batch.

    `number` counts lines (txt, jsonl) or records (csv, tsv) from 1; `id` is the row's own id, or its number if no row
    of the input has its own. `prompt` is the last question of the conversation; None if unknown. `conversation` is None
    for a row with an error; its `system_prompt` is None if the row has none. `settings` holds the row's validated
    sampling settings. `input` is the row as it was read, unless the output does not carry it. `model` is the one that
    an OpenAI request names, and `unused` are its keys without effect. `grammar` is that of its answer, instead of the
    batch's.
    """

    number: int
    id: RowId
    prompt: str | None
    conversation: Conversation | None
    settings: JsonObject
    error: RowError | None
    input: Any = None
    model: Any = None
    unused: Texts = ()
    grammar: Grammar | None = None

    @property
    def request_digest(self) -> str | None:
        """Digest of everything that the row requests besides its prompt, or of its error; None if there is nothing."""
        if self.conversation is None:
            asked = {"error": self.error and asdict(self.error)}
        else:
            pictures = [[picture.url for picture in message.pictures] for message in self.conversation.messages]
            values = {
                "pictures": pictures if any(pictures) else None,
                "messages": [
                    (message.role, message.content, message.reasoning, *map(asdict, message.rounds))
                    for message in self.conversation.messages[:-1]
                ],
                "system": self.conversation.system_prompt,
                "prefill": self.conversation.prefill and asdict(self.conversation.prefill),
                "settings": dict(self.settings),
                "model": self.model,
                "grammar": self.grammar and {"kind": self.grammar.kind, "text": self.grammar.text},
            }
            asked = {key: value for key, value in values.items() if value not in (None, [], {})}
        return text_digest(to_json(asked))[:_REQUEST_DIGITS] if asked else None

    @property
    def fields(self) -> JsonDict:
        return {
            "id": self.id,
            "prompt": self.prompt,
            LINE: self.number,
            REQUEST: self.request_digest,
            INPUT: self.input,
        }


class Rows(Protocol):
    """The rows of a batch by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> InputRow: ...


def require_prompt(text: str) -> str:
    if not text.strip():
        raise InvalidRow("the prompt is empty", "no_prompt")
    return well_formed(text)


def prompt_row(number: int, id: RowId, prompt: str, input: Any = None) -> InputRow:
    prompt = require_prompt(prompt)
    return InputRow(number, id, prompt, Conversation().user(prompt), {}, None, input)


def invalid_row(number: int, id: RowId, prompt: str | None, invalid: InvalidRow, input: Any = None) -> InputRow:
    return InputRow(number, id, prompt, None, {}, invalid.error, input)


def name_row(unit: str, object: JsonObject) -> str:
    return f"row {object['id']}" if object["id"] != object[LINE] else f"{unit} {object[LINE]}"


def row_flags(object: JsonObject) -> int:
    if object["error"] is not None:
        return RowFlag.FINISHED | RowFlag.FAILED
    flags = RowFlag.FINISHED
    if object["finish_reason"] in TRUNCATED_REASONS:
        flags |= RowFlag.TRUNCATED
    if not (object["text"].strip() or object.get("calls")):
        flags |= RowFlag.EMPTY
    votes = object["votes"]
    if votes is not None and (votes["winner"] is None or votes["tie"]):
        flags |= RowFlag.UNDECIDED
    return flags


def result_rows(rows: Rows, sha256: str | None = None, unit: str = "line", table: Table | None = None) -> ResultRows:
    """The rows of a result. `unit` is the word for a row of the input, whose digest is `sha256`."""
    return ResultRows(
        ("prompt", REQUEST),
        row_flags,
        partial(name_row, unit),
        len(rows),
        lambda position: rows[position].fields,
        sha256,
        table,
    )


def output_object(row: InputRow, origin: Origin | None = None, **values: Any) -> JsonDict:
    """The output object of a row: OUTPUT_KEYS, and further ones that have a value."""
    fields = row.fields
    more = {LINE: fields[LINE] if values.get("error") else None, REQUEST: fields[REQUEST]}
    more |= {**(origin.keys if origin else {}), INPUT: row.input}
    object = {**dict.fromkeys(OUTPUT_KEYS), "id": row.id, "prompt": row.prompt, **values}
    return object | {key: value for key, value in more.items() if value is not None}


def row_object(event: Outcome, larger_context: str) -> JsonDict:
    """The output object of a row that is finished."""
    _, row = event.row.key
    outcome, request = event.result, event.row.request
    if isinstance(outcome, MajorityVote):
        reply = outcome.reply or outcome.refusals[0]
    else:
        reply = outcome
    if isinstance(reply, RefusedEvent):
        return refused_object(row, reply)
    assert isinstance(request, Ask)
    has_schema = request.grammar is not None and request.grammar.is_schema
    values = reply_values(reply, request, None if has_schema else reply.final_answer)
    if isinstance(outcome, MajorityVote):
        values["final_answer"] = outcome.final_answer
        values["completion_tokens"] = sum(sample.total_tokens for sample in outcome.replies.values())
        values["votes"] = outcome.object
    if request.grammar:
        values["error"] = incomplete_error(reply, larger_context, request.grammar)
    return output_object(row, reply.finish.origin, **values)


def refused_object(row: InputRow, refused: RefusedEvent) -> JsonDict:
    error = row.error or RowError.of(refused.error)
    return output_object(row, refused.origin, text=refused.text, error=asdict(error))


def reply_values(reply: Reply, request: Ask, final_answer: str | None) -> JsonDict:
    """The values of a reply, whose first tokens may be of an earlier run."""
    values = reply.as_object(final_answer)
    continued = len(request.prefix_tokens)
    values["completion_tokens"] = continued + reply.total_tokens
    if continued:
        values |= {"prompt_tokens": reply.finish.prompt_tokens - continued or None, "seed": None}
    if request.settings.reasoning_limit is not None:
        values[REASONING_CLOSED_AT] = reply.reasoning_closed_at
    return values


def incomplete_error(reply: Reply, larger_context: str, grammar: Grammar) -> JsonDict | None:
    """Why a reply does not match the grammar, if it does not."""
    problem = reply.notice(larger_context, grammar) or reply.mismatch
    if problem is None:
        return None
    return asdict(RowError(INCOMPLETE, f"{problem.message}: {problem.hint}"))
