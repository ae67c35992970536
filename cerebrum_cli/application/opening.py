"""From a model and settings to a responder: the header is checked, the engine starts to load, the format is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.application.choice import chosen_format, format_builder
from cerebrum_cli.application.model import Model, require_loadable
from cerebrum_cli.application.responder import LocalResponder
from cerebrum_cli.engine.backend import OpenBackend
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.plan import LoadOptions, Shape
from cerebrum_cli.formats.plain import RAW
from cerebrum_cli.ground.settings import Settings

BackendFactory = Callable[[LoadOptions], OpenBackend]
"""Return how to open a model; the runtime picks llama.cpp, tests something smaller."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A model on its way into memory, and the responder that will speak for it."""

    model: Model
    format_name: str
    engine: Engine
    responder: LocalResponder


def open_model(
    factory: BackendFactory,
    model: Model,
    settings: Settings,
    *,
    raw: bool = False,
    template_options: Mapping[str, Any] | None = None,
    vocabulary_only: bool = False,
) -> Opened:
    """Begin to load a model and return at once; what is wrong with its file or format is raised before."""
    require_loadable(model.path, model.header)
    template = model.header.chat_template
    name = RAW.name if raw else chosen_format(settings.format, model.known_format, template)
    build = format_builder(name, template, template_options or {})
    engine = Engine(
        factory(
            LoadOptions(
                path=model.path,
                shape=Shape(
                    trained_context=model.trained_context,
                    weight_bytes=model.size,
                    layers=model.header.n_layers,
                    kv_bytes_per_token=model.header.kv_bytes_per_token,
                ),
                context_size=settings.ctx,
                gpu_layers=settings.gpu_layers,
                threads=settings.threads,
                vocabulary_only=vocabulary_only,
            )
        )
    )
    return Opened(model, name, engine, LocalResponder(engine, build, model.trained_context))
