"""`cerebrum lm-eval`: run tasks of lm-evaluation-harness."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.context import app_of
from cerebrum_cli.cli.options import LmEvalOptions
from cerebrum_cli.cli.signature import SettingKeys, composed, positional
from cerebrum_cli.core.settings import LOAD_KEYS, Layer

SETTINGS = SettingKeys((*LOAD_KEYS, "seed"), {"seed": "Random seed [default: 0]"})


@composed
def lm_eval(
    context: typer.Context,
    tasks: Annotated[list[str], positional("TASK...", "Names from `lm_eval ls tasks`, which may have wildcards")],
    given: Annotated[Layer, SETTINGS],
    options: LmEvalOptions,
) -> None:
    """Prints lm-eval's own table. Needs the extra lm-eval.

    Settings of generation are the task's; --gen-kwargs changes them. If the run is interrupted, run it again to resume.
    """
    from cerebrum_cli.cli.lm_eval import run_lm_eval

    run_lm_eval(app_of(context, options.verbose), tasks, given, options)
