"""Apply the saved prompt that `--use` names, beneath the options on the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from cerebrum_cli.core.saved_prompt import SavedPrompt, find_prompt
from cerebrum_cli.runtime.options import AskOptions, ConstrainedOptions, SavedPromptOptions

if TYPE_CHECKING:
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.runtime.composition import Runtime

Options = TypeVar("Options", bound=SavedPromptOptions)


def apply_prompt(
    runtime: Runtime, given: Layer, options: Options, typed: frozenset[str]
) -> tuple[SavedPrompt | None, Layer, Options]:
    """The saved prompt, and the settings and options with what it sets; it goes over variables, not over `typed` ones.

    Raises UsageError for an unknown name, and ConfigError.
    """
    if options.use is None:
        return None, given, options
    saved = find_prompt(runtime.config.prompts, options.use)
    given = {**given, **{key: value for key, value in saved.settings.items() if key not in typed}}
    if not isinstance(options, ConstrainedOptions):
        saved.require_chat()
    elif saved.schema and not typed & {"schema", "grammar"}:
        options = replace(options, schema=saved.schema, grammar=None)
    if not isinstance(options, AskOptions):
        saved.require_whole("a batch")
    elif saved.extract and not typed & {"extract", "extract_last", "extract_lang", "final"}:
        options = replace(options, extract=True)
    return saved, given, options
