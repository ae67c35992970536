"""`cerebrum tune`: find the fastest settings for a model."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.completion import completing, installed_models
from cerebrum_cli.cli.context import runtime_of
from cerebrum_cli.cli.options import TuneOptions
from cerebrum_cli.cli.signature import SettingKeys, composed
from cerebrum_cli.core.settings import ATTENTION_KEYS, Layer


@composed
def tune(
    context: typer.Context,
    given: Annotated[Layer, SettingKeys(("lora", "threads", "gpu_layers", *ATTENTION_KEYS))],
    options: TuneOptions,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Model to tune [default: the default model].",
            autocompletion=completing(installed_models),
        ),
    ] = None,
) -> None:
    """Measures settings on this machine, which takes about two minutes for a 7B. From then on, ask, chat and batch use
    the fastest.

    Settings that noticeably change the output are rejected, and settings that do not fit in memory are not tried.
    """
    from cerebrum_cli.cli.tune import tune

    tune(runtime_of(context), {**given, "model": model}, options)
