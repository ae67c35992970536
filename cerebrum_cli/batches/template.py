"""A prompt with places for the fields of a row: `{name}` is a field, whatever its name; `{{` and `}}` are braces."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cerebrum_cli.batches.rows import InvalidRow
from cerebrum_cli.core.errors import UsageError

_PIECE = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<field>[^{}]*)\}|(?P<stray>[{}])|(?P<text>[^{}]+)")


class _Piece(NamedTuple):
    text: str
    is_field: bool


@dataclass(frozen=True, slots=True)
class Template:
    """Literal text and the names of fields, in their order."""

    pieces: tuple[_Piece, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields it names, each once."""
        return tuple(dict.fromkeys(piece.text for piece in self.pieces if piece.is_field))

    def render(self, fields: Mapping[str, Any]) -> str:
        """Return the prompt a row makes of it, values that are no text as JSON; BadRow if a field is missing.

        What a field holds is never read as a template.
        """
        for name in self.fields:
            if name not in fields:
                raise InvalidRow(
                    "unknown_field", f"there is no field `{name}`; there are: {', '.join(fields) or 'none'}"
                )
        return "".join(_to_text(fields[piece.text]) if piece.is_field else piece.text for piece in self.pieces)


def parse_template(text: str) -> Template:
    """Return a template; UsageError for a brace without its other one, or no field at all."""
    pieces = []
    for match in _PIECE.finditer(text):
        if match["stray"]:
            what = f"the template has a {match['stray']} without its other brace, at character {match.start() + 1}"
            raise UsageError(what, "{name} is a field; write {{ and }} for braces")
        if match["field"] is None:
            pieces.append(_Piece(match["text"] or match["brace"][0], False))
        elif name := match["field"].strip():
            pieces.append(_Piece(name, True))
        else:
            raise UsageError(f"the template has a field without a name, at character {match.start() + 1}", "name it")
    template = Template(tuple(pieces))
    if not template.fields:
        raise UsageError("the template names no field, so that all rows would ask the same", "name one: {text}")
    return template


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
