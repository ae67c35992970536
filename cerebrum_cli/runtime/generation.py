"""What `ask` and `batch` share: settings of a vote, and the grammar of an answer."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from cerebrum_cli.application.inference.text_input import read_text
from cerebrum_cli.core.errors import GrammarError, UsageError
from cerebrum_cli.core.events import NoticeEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.core.settings import Layer, Settings
    from cerebrum_cli.runtime.composition import Runtime
    from cerebrum_cli.runtime.options import ConstrainedOptions

MAX_GRAMMAR_BYTES = 4_000_000  # of a file with a schema or a grammar


def generation_settings(runtime: Runtime, given: Layer, model: Model, samples_by: str | None) -> Settings:
    """Settings for a model; `samples_by` is the option that asks for several samples, which need a temperature.

    Raises UsageError.
    """
    if not samples_by:
        return runtime.settings(given, model)
    from cerebrum_cli.application.inference.voting import VOTE_TEMPERATURE, require_sampling

    settings = runtime.settings(given, model, {"temperature": VOTE_TEMPERATURE})
    require_sampling(settings, samples_by)
    return settings


def read_grammar(runtime: Runtime, options: ConstrainedOptions, quiet: bool) -> str | None:
    """GBNF grammar that `--schema` or `--grammar` names; None without either. Raises UsageError."""
    schema, grammar = options.schema, options.grammar
    if schema and grammar:
        raise UsageError("--schema and --grammar cannot be used together", "give one of them")
    if schema:
        with naming_grammar_file(options):
            text, ignored = runtime.schema_to_grammar(read_text(schema, MAX_GRAMMAR_BYTES))
        if ignored and not quiet:
            problem = f"{schema}: a grammar cannot express {', '.join(ignored)}, so answers may violate it"
            runtime.streams.notice(NoticeEvent(problem, "check the answer against the schema"))
        return text
    return read_text(grammar, MAX_GRAMMAR_BYTES) if grammar else None


@contextmanager
def naming_grammar_file(options: ConstrainedOptions) -> Iterator[None]:
    """Put the file that `--schema` or `--grammar` names before the message of a GrammarError."""
    try:
        yield
    except GrammarError as error:
        raise GrammarError(f"{options.schema or options.grammar}: {error.message}", error.hint) from error
