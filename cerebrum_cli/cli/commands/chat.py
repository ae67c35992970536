"""`cerebrum chat`: chat interactively."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.context import app_of, typed_options
from cerebrum_cli.cli.options import ChatOptions
from cerebrum_cli.cli.signature import SettingKeys, composed, positional
from cerebrum_cli.core.settings import REPLY_KEYS, Layer

SETTINGS = SettingKeys((*REPLY_KEYS, "overflow", "cache_gb", "vi"))


@composed
def chat(
    context: typer.Context,
    words: Annotated[
        list[str] | None, positional("[MODEL] [QUESTION]", "Model, then the first question; with -m, only a question")
    ] = None,
    *,
    given: Annotated[Layer, SETTINGS],
    options: ChatOptions,
) -> None:
    """Type /help for commands and keys.

    Each reply is saved while it is being generated: -c continues the latest session, however it ended.
    """
    from cerebrum_cli.cli import chat

    app = app_of(context, options.verbose)
    if code := chat.chat(app, words or [], given, options, typed_options(context)):
        raise typer.Exit(code)
