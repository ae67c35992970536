"""Which format a model's conversations are written in: asked for, known, embedded, or an error; never a guess."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cerebrum_cli.application.inference.responder import FormatBuilder
from cerebrum_cli.core.errors import FormatError, UsageError
from cerebrum_cli.core.parts import Text
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.formats.format import PromptFormat
from cerebrum_cli.formats.plain import EMBEDDED, PLAIN_FORMATS, RAW

FORMAT_NAMES = (*PLAIN_FORMATS, EMBEDDED)


def chosen_format(asked: str | None, known: str | None, template: str | None) -> str:
    """Return the name of the format: the one asked for, else the catalogue's, else the embedded template."""
    if asked is not None and asked not in FORMAT_NAMES:
        raise UsageError(f"unknown format {asked!r}", f"--format is one of {', '.join(FORMAT_NAMES)}")
    if asked is None and known is not None and known not in FORMAT_NAMES:
        raise FormatError(
            f"the catalogue gives this model the format {known!r}, and there is none of that name",
            f"write one of {', '.join(FORMAT_NAMES)} in its row of models.toml, or use --format",
        )
    name = asked or known or (EMBEDDED if template else None)
    if name is None:
        raise FormatError(
            "this model is not in the catalogue and its file embeds no template, so its prompt format is unknown",
            f"say which it is with --format ({', '.join(PLAIN_FORMATS)}), or use --raw",
        )
    if name == EMBEDDED and not template:
        raise FormatError("this model's file embeds no template", f"use --format {' or '.join(PLAIN_FORMATS)}")
    return name


def format_builder(name: str, template: str | None, options: Mapping[str, Any]) -> FormatBuilder:
    """Return how to build a chosen format once the vocabulary is known; UsageError for options nothing reads."""
    if name != EMBEDDED or template is None:
        if options:
            raise UsageError(
                f"--template-arg is for embedded templates, and this model is asked in the format {name}",
                "leave it out, or add --format embedded",
            )
        row = RAW if name == RAW.name else PLAIN_FORMATS[name]
        return lambda _: row

    def build(backend: Backend) -> PromptFormat:
        from cerebrum_cli.formats.template import EmbeddedFormat

        return EmbeddedFormat(
            source=template,
            bos=backend.special_token_text("bos"),
            eos=backend.special_token_text("eos"),
            special_tokens=lambda text: special_tokens(backend, text),
            options=options,
        )

    return build


def prepare_format(name: str) -> None:
    """Import what a format takes, which for a template is longer than many a model takes to load."""
    if name == EMBEDDED:
        import cerebrum_cli.formats.template  # noqa: F401


def special_tokens(backend: Backend, text: str) -> tuple[int, ...]:
    """Return the special tokens that a text would become if it were trusted, in order."""
    special = backend.special_token_ids((text,))
    return tuple(token for token in backend.tokenize((Text(text, trusted=True),)) if token in special)
