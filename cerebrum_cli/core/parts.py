"""A prompt before tokenising: runs of text, each trusted or pasted, and runs of tokens already said."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Characters; only trusted text (a format's own markup) may name special tokens."""

    value: str
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids that stand in the prompt as they are: a reply in the tokens it was said in."""

    ids: tuple[int, ...]


Part = Text | Tokens


def join_parts(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Return the same prompt with empty runs gone and neighbours of one kind made one."""
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, Text) and isinstance(last, Text) and part.trusted == last.trusted:
            out[-1] = Text(last.value + part.value, last.trusted)
        elif part != Tokens(()) and not (isinstance(part, Text) and not part.value):
            out.append(part)
    return tuple(out)
