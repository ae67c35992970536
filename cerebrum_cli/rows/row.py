"""One row of an input: its prompt and settings, or its error; and the object that is written for it.

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

from collections.abc import Callable
from dataclasses import asdict, field
from typing import Any, TypeAlias

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import TRUNCATED as TRUNCATED_REASONS, Origin, RefusedEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.core.row_fields import INCOMPLETE, InvalidRow, RowError, RowId
from cerebrum_cli.core.text import Texts, well_formed
from cerebrum_cli.replies.majority_vote import MajorityVote, Outcome
from cerebrum_cli.replies.reply import Reply
from cerebrum_cli.rows.keys import Digest, RowFlag, digest_of
from cerebrum_cli.rows.output_tables import INPUT

REPLY_KEYS = (
    "text",
    "final_answer",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "seed",
    "reasoning",
    "votes",
)
REASONING_CLOSED_AT = "reasoning_closed_at"  # a key of replies whose reasoning is limited
LINE = "line"  # the key of a row that failed
REFERENCE = "reference"  # the key of the right answer, in the object of a row for which it is known


class Cells(dict[str, str]):
    """The fields of a record of a table, by name."""


@frozen
class InputRow:
    """What a row asks, and what is known of the right answer.

    `number` counts lines (txt, jsonl) or records (csv, tsv) from 1; `id` is the same unless the row has its own.
    `prompt` is the last question of the conversation; None if unknown. `conversation` is None for a row with an error;
    its `system_prompt` is None if the row has none. `settings` holds the row's validated sampling settings. `input` is
    the row as it was read, and `unused` are its keys without effect. `grammar` is that of its answer, and `choices` are
    those of a decision, instead of those of all rows. `expected` has further keys of its output object: what is known
    of the right answer.
    """

    number: int
    id: RowId
    prompt: str | None
    conversation: Conversation | None
    settings: JsonObject
    error: RowError | None
    input: Any = None
    unused: Texts = ()
    grammar: Grammar | None = None
    choices: Any = None
    expected: JsonObject = field(default_factory=dict)

    @property
    def asked(self) -> Digest:
        """The digest of what the row asks, whatever text it was read from."""
        if self.conversation is None:
            assert self.error
            return digest_of(to_json([self.error.type, self.error.message]).encode())
        messages = [
            [message.role, message.content, message.reasoning, [picture.url for picture in message.pictures]]
            + [[round.content, *map(asdict, round.calls)] for round in message.rounds]
            for message in (*self.conversation.messages, *filter(None, [self.conversation.prefill]))
        ]
        grammar = self.grammar and [self.grammar.kind, self.grammar.text]
        asked = [self.conversation.system_prompt, messages, dict(self.settings), grammar, self.choices]
        return digest_of(to_json(asked).encode())

    @property
    def keys(self) -> JsonDict:
        """The keys of its output object that are those of the row itself."""
        return {"id": self.id, "prompt": self.prompt, **self.expected}


RowOf: TypeAlias = Callable[[int, RowId, JsonObject], InputRow]  # a row by its number, id and fields; or InvalidRow


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


def flags_of(object: JsonObject) -> int:
    """The RowFlags of a finished row. A reply to a question whose answer is known counts as one: a score judges it."""
    reason, is_scored = object.get("finish_reason"), REFERENCE in object
    if object["error"] is not None and not (reason and is_scored):
        return RowFlag.FINISHED | RowFlag.FAILED
    flags = RowFlag.FINISHED
    if object.get("decided") is False:
        flags |= RowFlag.UNDECIDED
    if reason is None:
        return flags
    if reason in TRUNCATED_REASONS:
        flags |= RowFlag.TRUNCATED
    if not (object["text"].strip() or object.get("calls")):
        flags |= RowFlag.EMPTY
    votes = object["votes"]
    if votes is not None and (votes["winner"] is None or votes["tie"]) and not is_scored:
        flags |= RowFlag.UNDECIDED
    return flags


def output_object(row: InputRow, keys: Texts, values: JsonObject, origin: Origin | None = None) -> JsonDict:
    """The output object of a row, with the keys of an answer, and further ones that have a value."""
    more = {
        LINE: row.number if values.get("error") else None,
        **(origin.keys if origin else {}),
        INPUT: row.input,
    }
    object = {"id": row.id, "prompt": row.prompt, **dict.fromkeys(keys), "error": None, **values, **row.expected}
    return object | {key: value for key, value in more.items() if value is not None}


def row_object(event: Outcome) -> JsonDict:
    """The output object of a row that is finished."""
    _, row = event.row.key
    outcome, request = event.result, event.row.request
    if isinstance(outcome, MajorityVote):
        reply = outcome.reply or outcome.refusals[0]
    else:
        reply = outcome
    if isinstance(reply, RefusedEvent):
        refusal = {"text": reply.text, "error": asdict(RowError.of(reply.error))}
        return output_object(row, REPLY_KEYS, refusal, reply.origin)
    assert isinstance(request, Ask)
    has_schema = request.grammar is not None and request.grammar.is_schema
    values = reply_values(reply, request, None if has_schema else reply.final_answer)
    if isinstance(outcome, MajorityVote):
        values["final_answer"] = outcome.final_answer
        values["completion_tokens"] = sum(sample.total_tokens for sample in outcome.replies.values())
        values["votes"] = outcome.object
    if request.grammar:
        values["error"] = incomplete_error(reply, request.grammar)
    return output_object(row, REPLY_KEYS, values, reply.finish.origin)


def reply_values(reply: Reply, request: Ask, final_answer: str | None) -> JsonDict:
    values = reply.as_object(final_answer)
    values["completion_tokens"] = reply.total_tokens
    if request.settings.reasoning_limit is not None:
        values[REASONING_CLOSED_AT] = reply.reasoning_closed_at
    return values


def incomplete_error(reply: Reply, grammar: Grammar) -> JsonDict | None:
    """Why a reply does not match the grammar, if it does not."""
    problem = reply.notice(grammar) or reply.mismatch
    if problem is None:
        return None
    return asdict(RowError(INCOMPLETE, f"{problem.message}: {problem.hint}"))
