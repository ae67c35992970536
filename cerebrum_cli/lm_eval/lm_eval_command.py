"""`cerebrum lm-eval`: the command line of lm-evaluation-harness, with a model of this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from cerebrum_cli.cli.command import argument, settings_options
from cerebrum_cli.cli.row_commands import ConcurrencyOptions
from cerebrum_cli.core.declaration import option_group
from cerebrum_cli.core.environment import set_environment_default
from cerebrum_cli.core.errors import CerebrumError, FormatError, UsageError
from cerebrum_cli.core.settings import LOAD_KEYS
from cerebrum_cli.core.text import foreign_line, pip_install

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.lm_eval.model import Use
    from cerebrum_cli.replies.interface import Model
    from cerebrum_cli.replies.source import ModelSource

MODEL = "cerebrum"  # its name in lm-eval's registry
OWN_SHORT_FLAGS = ("model",)  # all other letters are lm-eval's
KEYS = (*(key for key in LOAD_KEYS if key != "system"), "think")  # lm-eval has --system_instruction


@option_group
class LmEvalCommand(ConcurrencyOptions):
    """All other options are those of `lm_eval run`. Install it first: pip install "cerebrum-cli[lm-eval]".

    Examples:
      cerebrum lm-eval -m cerebrum-7b --tasks arc_easy,piqa --limit 200
    """

    without: ClassVar = ("endpoint", "served_model_name", "quiet")
    settings: ClassVar = {
        key: declared if key in OWN_SHORT_FLAGS else declared._replace(short=None)
        for key, declared in settings_options(KEYS).items()
    }
    arguments: list[str] = argument(
        "ARGS...", "Options of lm-eval; `lm_eval run --help` lists them", is_list=True, takes_options=True
    )

    def run(self, app: App) -> None:
        from cerebrum_cli.terminal.progress import interruptible

        if find_spec("lm_eval") is None:
            raise UsageError("lm-eval is not installed", pip_install('"cerebrum-cli[lm-eval]"'))
        source = self.find_source(app, self.overrides)
        set_environment_default("HF_HUB_DISABLE_TELEMETRY", "1")
        set_environment_default("HF_UPDATE_DOWNLOAD_COUNTS", "0")
        if self.offline:
            set_environment_default("HF_HUB_OFFLINE", "1")
            set_environment_default("HF_DATASETS_OFFLINE", "1")
        with interruptible("an interrupted run can be resumed if it has --use_cache FILE"):
            register(app, source)
            model = json.dumps({"model": source.model.label})  # lm-eval names its results after it
            run_harness(["run", "--model", MODEL, "--model_args", model, *self.arguments])


def register(app: App, source: ModelSource) -> None:
    """Register the model with lm-eval, which makes it with the values of --model_args; it is closed on exit."""
    from lm_eval.api.registry import register_model

    from cerebrum_cli.lm_eval.model import CerebrumLM

    @register_model(MODEL)
    class SourceLM(CerebrumLM):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(lambda use: open_model(source, use), **arguments)
            app.on_exit.callback(self.close)


def run_harness(arguments: list[str]) -> None:
    """Run lm-eval's command line. Its errors of tasks, data and packages become a CerebrumError."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *arguments]
    try:
        cli_evaluate()
    except BrokenPipeError:
        raise
    except ImportError as error:
        hint = pip_install(error.name or "PACKAGE")
        raise UsageError(f"lm-eval needs a package: {foreign_line(str(error))}", hint) from error
    except ValueError as error:
        raise UsageError(f"lm-eval: {foreign_line(str(error))}", "see lm_eval run --help, lm_eval ls tasks") from error
    except OSError as error:
        raise CerebrumError(f"lm-eval: {foreign_line(str(error))}", "check the task and the network") from error


def open_model(source: ModelSource, use: Use) -> Model:
    """Open the model for lm-eval's requests; a score does not depend on what is scored beside it."""
    from cerebrum_cli.engine.requests import ContextOptions
    from cerebrum_cli.replies.interface import open_source

    try:
        _ = source.chosen_format  # if it is known, so is the markup of its reasoning
    except FormatError:
        source = replace(source, raw=True)
    if use == "generation":
        return open_source(source.for_rows())
    settings = replace(source.settings, cache_type=None, flash_attn=None)
    exact = ContextOptions(
        slots=16, kv_unified=True, flash_attention=False, cache_type_k="f32", cache_type_v="f32", swa_full=True
    )
    return open_source(replace(source, settings=settings, context=exact))
