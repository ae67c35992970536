"""One row of a batch: what is asked, with what, or why it cannot be; and the object that is written of it.

What can be wrong with a row, by the `type` of its error; what goes wrong while it is answered has types of its own:

    invalid_utf8        the line is no UTF-8
    invalid_json        the line is no JSON
    invalid_request     no object, or something in it has the wrong type, contradicts itself or cannot be obeyed
    invalid_messages    a list of messages that is no conversation awaiting a reply
    invalid_setting     a sampling setting of the wrong type, or out of its range
    invalid_record      a record of a table with more or fewer fields than the header
    unknown_field       the template names a field the row does not have
    no_prompt           nothing is asked, or nothing but blanks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.text import well_formed

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
_MAX_MESSAGE = 400  # characters of a message: what it quotes may be a megabyte

RowId = str | int


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no answer: a short word for programs, and a line for people."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class Row:
    """One question of a batch.

    `number` counts lines (txt, jsonl) or records (csv, tsv) from 1; `id` is the row's own, or its number. `prompt` is
    the text of the question, the last one of a conversation; None where it is not known. `conversation` is None where
    the row cannot be asked; its `system_prompt` is None where the row gives none. `settings` are the sampling settings
    the row gives, checked, as a layer for `fold`.
    """

    number: int
    id: RowId
    prompt: str | None
    conversation: Conversation | None
    settings: Mapping[str, Any]
    error: RowError | None


class InvalidRow(Exception):
    """A row that cannot be asked; caught where its row is made."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        message = well_formed(message)
        self.error = RowError(type, message if len(message) <= _MAX_MESSAGE else f"{message[: _MAX_MESSAGE - 1]}…")


def require_prompt(text: str) -> str:
    """Return the text of a question as it is asked; BadRow if it says nothing."""
    if not text.strip():
        raise InvalidRow("no_prompt", "the prompt is empty")
    return well_formed(text)


def prompt_row(number: int, id: RowId, prompt: str) -> Row:
    """Return the row of a question without settings of its own."""
    return Row(number, id, prompt, Conversation().user(prompt), {}, None)


def invalid_row(number: int, id: RowId, prompt: str | None, invalid: InvalidRow) -> Row:
    """Return the row of something that cannot be asked."""
    return Row(number, id, prompt, None, {}, invalid.error)


def failed_object(row: Row, error: RowError) -> dict[str, Any]:
    """Return the object written of a row that has no answer, its keys those of OUTPUT_KEYS in their order."""
    return {**dict.fromkeys(OUTPUT_KEYS), "id": row.id, "prompt": row.prompt, "error": asdict(error)}
