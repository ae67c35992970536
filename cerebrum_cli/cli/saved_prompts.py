"""Apply the saved prompt that `-p` names, beneath the options on the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from cerebrum_cli.cli.options import FIRST, AskOptions, ConstrainedOptions, SavedPromptOptions
from cerebrum_cli.core.saved_prompt import SavedPrompt, find_prompt

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import Runtime
    from cerebrum_cli.core.settings import Layer

WHOLE_ANSWER = {"extract": None, "final": False, "schema": None}
Options = TypeVar("Options", bound=SavedPromptOptions)


def apply_prompt(
    runtime: Runtime, given: Layer, options: Options, typed: frozenset[str]
) -> tuple[SavedPrompt | None, Layer, Options]:
    """The saved prompt, and the settings and options with what it sets; it goes over variables, not over `typed` ones.

    Raises UsageError for an unknown name, and ConfigError.
    """
    if options.saved_prompt is None:
        return None, given, options
    saved = find_prompt(runtime.config.prompts, options.saved_prompt, is_option=True)
    given = {**given, **{key: value for key, value in saved.settings.items() if key not in typed}}
    if not isinstance(options, ConstrainedOptions):
        saved.require_chat()
        return saved, given, options
    if not isinstance(options, AskOptions):
        saved.require_without("extract", "a batch")
    elif saved.schema or saved.extract:  # these exclude what variables may ask for
        options = replace(options, **{key: value for key, value in WHOLE_ANSWER.items() if key not in typed})
    if saved.schema and not typed & {"schema", "grammar", "extract"}:
        options = replace(options, schema=saved.schema, grammar=None)
    if saved.extract and not typed & {*WHOLE_ANSWER, "votes"}:
        options = replace(options, extract=FIRST if saved.extract is True else saved.extract)
    return saved, given, options
