"""LoRA adapters applied to a model: found, checked against it, and identified by their content."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import exists
from cerebrum_cli.core.lora import parse_adapter
from cerebrum_cli.gguf.lora import adapter_sizes
from cerebrum_cli.models.model import Adapter, Model, absolute_path, as_path

if TYPE_CHECKING:
    from cerebrum_cli.models.library import Library


def with_adapters(library: Library, model: Model, texts: Iterable[str]) -> Model:
    """The model with the adapters that `--lora` names; one with scale 0 is only checked.

    Raises UsageError for a missing file, and ModelFileError for one that is no adapter, or does not fit the model.
    """
    adapters = []
    for text in texts:
        name, scale = parse_adapter(text)
        path = absolute_path(as_path(name))
        if not exists(path):
            raise UsageError(f"adapter {path} does not exist", "check the path, or give --lora none")
        sizes = adapter_sizes(path, model.paths)
        digest = library.remembered_digest(path, lambda *_: None).sha256
        adapters.append(Adapter(path, scale, digest, sizes))
    applied = tuple(adapter for adapter in adapters if adapter.scale)
    return replace(model, adapters=applied) if applied != model.adapters else model
