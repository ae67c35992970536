"""The fields of a row of questions, parsed from a line of JSON; its id, and the prompt that a template makes of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from math import isfinite, isnan
from typing import Any, Self

from cerebrum_cli.core.errors import CerebrumError, NoAnswer, PromptTooLong, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.core.text import Match, Texts, truncate, well_formed

RowId = str | int
ID_KEYS = ("custom_id", "id")  # the first with a value is the row's id
TOO_LONG = "context_length_exceeded"  # the error code of the OpenAI API
REFUSED = "invalid_request"
UNKNOWN_FIELD = "unknown_field"
INCOMPLETE = "incomplete_output"  # it does not match its grammar: truncated, blank, only reasoning, or another value
_MAX_MESSAGE = 400  # characters: the value it quotes may be a megabyte
_PIECE = re.compile(r"\{\{|\}\}|\{(?P<field>[^{}]*)\}|[{}]")


@frozen
class RowError:
    """Why a row has no answer: a `type` for programs and a message for people."""

    type: str
    message: str

    @classmethod
    def of(cls, error: CerebrumError) -> Self:
        """The error of a row that is refused."""
        kind = REFUSED
        if isinstance(error, PromptTooLong):
            kind = TOO_LONG
        elif isinstance(error, NoAnswer):
            kind = INCOMPLETE
        return cls(kind, f"{error.message}: {error.hint}" if error.hint else error.message)


class InvalidRow(Exception):
    """A row that cannot be answered, with its `id` if that is the reason; caught where its row is created."""

    def __init__(self, message: str, type: str = REFUSED, id: RowId | None = None) -> None:
        super().__init__(message)
        self.id = id
        self.error = RowError(type, truncate(well_formed(message), _MAX_MESSAGE))


def parse_line(line: str) -> Any:
    """The value of a line. NaN, a missing value, is null; a number that is not finite is text. Raises InvalidRow."""
    try:
        return json.loads(
            line,
            object_pairs_hook=_object,
            parse_float=_number,
            parse_int=_integer,
            parse_constant=_number,
        )
    except json.JSONDecodeError as error:
        raise InvalidRow(f"not JSON: {error.msg} (character {error.pos + 1})", "invalid_json") from error
    except RecursionError as error:
        raise InvalidRow(f"not JSON: {error}", "invalid_json") from error


def _object(pairs: Sequence[tuple[str, Any]]) -> JsonDict:
    """An object without a key that occurs twice, of which one value would be lost. Raises InvalidRow."""
    item = dict(pairs)
    if len(item) < len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidRow(f"the key `{repeated}` occurs more than once", "invalid_json")
    return item


def _number(text: str) -> float | str | None:
    value = float(text)
    if isnan(value):
        return None
    return value if isfinite(value) else text


def _integer(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:  # Python converts up to 4,300 digits
        return digits


def own_id(item: JsonObject, number: int, keys: Sequence[str] = ID_KEYS) -> RowId:
    """A row's own id, or else its number: text, or an integer, which pandas may write as 5.0. Raises InvalidRow."""
    for key in keys:
        value = item.get(key)
        if value in (None, ""):
            continue
        if isinstance(value, str):
            return well_formed(value)
        if type(value) in (int, float) and value % 1 == 0:
            return int(value)
        problem = f"invalid `{key}`: {value!r}; it must be text or an integer"
        raise InvalidRow(problem, id=to_json(value))
    return number


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
                raise InvalidRow(f"no field `{name}`; the fields are: {', '.join(fields) or 'none'}", UNKNOWN_FIELD)
        return _PIECE.sub(lambda piece: _rendered(piece, fields), self.text)


def _rendered(piece: Match, fields: JsonObject) -> str:
    if piece["field"] is None:
        return piece[0][0]
    return field_text(fields[piece["field"].strip()])


def field_text(value: Any) -> str:
    """A field in a prompt: text as it is, any other value as JSON."""
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
