"""`cerebrum ask`: answer one question."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.context import app_of, typed_options
from cerebrum_cli.cli.options import AskOptions
from cerebrum_cli.cli.signature import SettingKeys, composed, positional
from cerebrum_cli.core.settings import REPLY_KEYS, Layer

SETTINGS = SettingKeys((*REPLY_KEYS, "cache_gb"))


@composed
def ask(
    context: typer.Context,
    given: Annotated[Layer, SETTINGS],
    options: AskOptions,
    prompt: Annotated[str | None, positional("PROMPT", "The question; `-` reads standard input")] = None,
) -> None:
    """The prompt is built from the files, PROMPT and standard input, in that order.

    The exchange is saved as a session, which -c continues.
    """
    from cerebrum_cli.cli import ask

    ask.ask(app_of(context, options.verbose), prompt, given, options, typed_options(context))
