"""One row of a batch: its prompt and settings, or its error; the template of prompts; and the object written for it.

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

import json
import re
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import TRUNCATED as TRUNCATED_REASONS
from cerebrum_cli.core.events import Origin
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import Match, Texts, text_digest, truncate, well_formed
from cerebrum_cli.results.schema import FAILED, FINISHED, TRUNCATED, UNDECIDED, ResultRows, Table, to_json

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
_MAX_MESSAGE = 400  # characters: the value it quotes may be a megabyte

_PIECE = re.compile(r"\{\{|\}\}|\{(?P<field>[^{}]*)\}|[{}]")

RowId = str | int


@frozen
class RowError:
    """Why a row has no answer: a `type` for programs and a message for people."""

    type: str
    message: str


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
    def request(self) -> str | None:
        """Digest of everything that the row requests besides its prompt, or of its error; None if there is nothing."""
        if self.conversation is None:
            asked = {"error": self.error and asdict(self.error)}
        else:
            values = {
                "messages": [
                    (message.role, message.content, message.reasoning, *map(asdict, message.rounds))
                    for message in self.conversation.messages[:-1]
                ],
                "system": self.conversation.system_prompt,
                "prefill": self.conversation.prefill and asdict(self.conversation.prefill),
                "settings": dict(self.settings),
                "model": self.model,
                "grammar": self.grammar and asdict(self.grammar),
            }
            asked = {key: value for key, value in values.items() if value not in (None, [], {})}
        return text_digest(to_json(asked))[:_REQUEST_DIGITS] if asked else None

    @property
    def fields(self) -> JsonDict:
        return {"id": self.id, "prompt": self.prompt, LINE: self.number, REQUEST: self.request, INPUT: self.input}


class Rows(Protocol):
    """The rows of a batch by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> InputRow: ...


class InvalidRow(Exception):
    """A row that cannot be answered, with its `id` if that is the reason; caught where its row is created."""

    def __init__(self, message: str, type: str = "invalid_request", id: RowId | None = None) -> None:
        super().__init__(message)
        self.id = id
        self.error = RowError(type, truncate(well_formed(message), _MAX_MESSAGE))


def require_prompt(text: str) -> str:
    if not text.strip():
        raise InvalidRow("the prompt is empty", "no_prompt")
    return well_formed(text)


def prompt_row(number: int, id: RowId, prompt: str, input: Any = None) -> InputRow:
    prompt = require_prompt(prompt)
    return InputRow(number, id, prompt, Conversation().user(prompt), {}, None, input)


def invalid_row(number: int, id: RowId, prompt: str | None, invalid: InvalidRow, input: Any = None) -> InputRow:
    return InputRow(number, id, prompt, None, {}, invalid.error, input)


@frozen
class Template:
    """A text with the names of its `fields` in braces; `{{` and `}}` are literal braces."""

    text: str
    fields: Texts

    def render(self, fields: JsonObject) -> str:
        """Render the prompt of a row; values that are not text are written as JSON.

        Field values are never parsed as templates. Raises InvalidRow if a field is missing.
        """
        for name in self.fields:
            if name not in fields:
                raise InvalidRow(f"no field `{name}`; the fields are: {', '.join(fields) or 'none'}", "unknown_field")
        return _PIECE.sub(lambda piece: _rendered(piece, fields), self.text)


def _rendered(piece: Match, fields: JsonObject) -> str:
    if piece["field"] is None:
        return piece[0][0]
    value = fields[piece["field"].strip()]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_template(text: str) -> Template:
    """Parse a template. Raises UsageError for an unmatched brace, and without any field."""
    fields = []
    for piece in _PIECE.finditer(text):
        field = piece["field"]
        place = f"in the template, at character {piece.start() + 1}"
        if len(piece[0]) == 1:
            raise UsageError(f"unmatched {piece[0]} {place}", "{name} is a field; write {{ and }} for literal braces")
        if field is None:
            continue
        if not field.strip():
            raise UsageError(f"field without a name {place}", "write {NAME}")
        fields.append(field.strip())
    if not fields:
        raise UsageError("the template has no field, so all prompts would be the same", "add one, like {text}")
    return Template(text, tuple(dict.fromkeys(fields)))


def name_row(unit: str, object: JsonObject) -> str:
    return f"row {object['id']}" if object["id"] != object[LINE] else f"{unit} {object[LINE]}"


def row_flags(object: JsonObject) -> int:
    if object["error"] is not None:
        return FINISHED | FAILED
    flags = FINISHED
    if object["finish_reason"] in TRUNCATED_REASONS:
        flags |= TRUNCATED
    votes = object["votes"]
    if votes is not None and (votes["winner"] is None or votes["tie"]):
        flags |= UNDECIDED
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
