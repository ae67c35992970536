"""A prompt before tokenization: parts of trusted or untrusted text, and parts that are tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Text; special tokens are recognized only in trusted text, such as a format's own markup."""

    value: str
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids to use unchanged: a reply in the tokens it was generated as."""

    ids: tuple[int, ...]


PromptPart = Text | Tokens


def join_parts(parts: tuple[PromptPart, ...]) -> tuple[PromptPart, ...]:
    """Join adjacent texts of the same kind, and drop empty parts."""
    out: list[PromptPart] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, Text) and isinstance(last, Text) and part.trusted == last.trusted:
            out[-1] = Text(last.value + part.value, last.trusted)
        elif part != Tokens(()) and not (isinstance(part, Text) and not part.value):
            out.append(part)
    return tuple(out)
