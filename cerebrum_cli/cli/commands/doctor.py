"""`cerebrum doctor`: check the whole installation."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.context import runtime_of
from cerebrum_cli.cli.options import DoctorOptions
from cerebrum_cli.cli.signature import SettingKeys, composed
from cerebrum_cli.core.settings import Layer

SETTINGS = SettingKeys(("model",), {"model": "Model to check [default: the default model]"})


@composed
def doctor(context: typer.Context, given: Annotated[Layer, SETTINGS], options: DoctorOptions) -> None:
    """Each line is ok, a warning or a failure. Warnings and failures come with a hint on how to fix them.

    A small bundled model answers a question with a known answer.

    With --endpoint, only servers are checked: their kind, their replies, and whether their vocabulary is MODEL's.

    Exits with code 1 if anything fails.
    """
    from cerebrum_cli.cli.doctor import doctor

    if not doctor(runtime_of(context), given, options):
        raise typer.Exit(1)
