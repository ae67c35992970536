"""The model that lm-eval's own command line finds: `lm_eval --model cerebrum --model_args model=REF,ctx=4096`."""

from __future__ import annotations

from functools import partial
from typing import Any

from cerebrum_cli.cli.app import real_app
from cerebrum_cli.cli.lm_eval import LmEvalOptions, has_format, open_for_lm_eval
from cerebrum_cli.core.conversion import validate
from cerebrum_cli.core.declaration import options_of
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import GENERATION_KEYS, KEYS
from cerebrum_cli.engine.memory import ContextOptions
from cerebrum_cli.eval.lm_eval.model import CerebrumLM
from cerebrum_cli.model.source import AUTO_PARALLEL, ModelSource
from cerebrum_cli.terminal.progress import StageProgress

SETTINGS = (*(key for key in KEYS if key not in GENERATION_KEYS), "think", "seed")
BOS = "add_bos_token"


class CerebrumModel(CerebrumLM):
    """A model by its reference; other arguments are settings, such as `ctx` and `format`."""

    def __init__(
        self,
        model: str | None = None,
        batch_size: object = None,  # noqa: ARG002 - lm-eval passes these to every model
        max_batch_size: object = None,  # noqa: ARG002
        device: object = None,  # noqa: ARG002
        add_bos_token: Any = None,
        **settings: Any,
    ) -> None:
        for name in settings.keys() - set(SETTINGS):
            raise UsageError(f"--model_args has no {name!r}", f"it has {', '.join((*SETTINGS, BOS))}")
        bos = add_bos_token and validate(BOS, options_of(LmEvalOptions)[BOS], add_bos_token, f"--model_args {BOS}")
        app = real_app()
        overrides = {"model": None if model is None else str(model), **settings}
        found = app.library.resolve(app.settings(overrides).model)
        merged = app.settings(overrides, found)
        found = app.library.with_adapters(found, merged.lora)
        context = ContextOptions(slots=AUTO_PARALLEL, batch_invariant=True)
        source = ModelSource(app, found, merged, context=context, raw=not has_format(merged, found))
        open_for = partial(open_for_lm_eval, source)
        super().__init__(open_for, StageProgress(app.streams).emit, merged.seed or 0, bos)
