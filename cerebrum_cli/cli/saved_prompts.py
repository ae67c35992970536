"""Apply the saved prompt that `-p` names, beneath the options on the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from cerebrum_cli.cli.options import FIRST, AskOptions, ConstrainedOptions, SavedPromptOptions
from cerebrum_cli.core.config import SavedPrompt, find_prompt
from cerebrum_cli.core.settings import SourcedLayer

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.settings import Layer

WHOLE_ANSWER = {"extract": None, "final": False, "schema": None}
Options = TypeVar("Options", bound=SavedPromptOptions)


def apply_prompt(
    app: App, overrides: Layer, options: Options, on_command_line: frozenset[str]
) -> tuple[SavedPrompt | None, Layer, Options]:
    """The saved prompt, and the settings and options with what it sets, except for those `on_command_line`.

    Raises UsageError for an unknown name, and ConfigError.
    """
    if options.saved_prompt is None:
        return None, overrides, options
    saved = find_prompt(app.config.prompts, options.saved_prompt, is_option=True)
    typed = SourcedLayer({key: value for key, value in overrides.items() if key in on_command_line})
    overrides = SourcedLayer(overrides, saved.settings, typed)
    if not isinstance(options, ConstrainedOptions):
        saved.require_chat()
        return saved, overrides, options
    if not isinstance(options, AskOptions):
        saved.require_without("extract", "a batch")
    elif saved.schema or saved.extract:  # these exclude what variables may ask for
        options = replace(options, **{key: value for key, value in WHOLE_ANSWER.items() if key not in on_command_line})
    if saved.schema and not on_command_line & {"schema", "grammar", "extract"}:
        options = replace(options, schema=saved.schema, grammar=None)
    if saved.extract and not on_command_line & {*WHOLE_ANSWER, "votes"}:
        options = replace(options, extract=FIRST if saved.extract is True else saved.extract)
    return saved, overrides, options
