"""What `show` and `list` tell of models, as objects: sizes in bytes, contexts in tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cerebrum_cli.application.library import Library, Model, Progress
from cerebrum_cli.ground.errors import ModelFileError


def described(library: Library, model: Model, progress: Progress) -> dict[str, Any]:
    """Return what `show --json` prints of a model; sizes in bytes, the context in tokens."""
    header, spec, entry = model.header, model.spec, model.file
    form = model.usual_format
    return {
        "name": model.name,
        "path": str(model.path),
        "size": model.path.stat().st_size,
        "format": form,
        "context_size": model.trained_context,
        "sha256": library.digest(model, progress),
        "quantization": header.quantization,
        "architecture": header.architecture,
        "parameters": header.parameters,
        "layers": header.n_layers,
        "vocabulary_size": header.vocabulary_size,
        "kv_bytes_per_token": header.kv_bytes_per_token,
        "chat_template": header.chat_template is not None,
        "source": entry.source if entry else None,
        "repo_id": spec.repo_id if spec else None,
        "licence": spec.licence if spec else None,
        "default": entry is not None and library.registry.default == entry.name,
    }


def rows(library: Library) -> Iterator[dict[str, Any]]:
    """Yield what `list --json` prints of each model that is here; a file that is gone or damaged says so in `error`."""
    default = library.registry.default
    for model in library.models():
        entry = model.file
        row: dict[str, Any] = {"name": model.name, "path": str(model.path), "default": model.name == default}
        try:
            header = model.header
        except ModelFileError as error:
            row |= {
                "quantization": None,
                "size": entry.size if entry else None,
                "format": None,
                "context_size": None,
                "error": error.what,
            }
        else:
            row |= {
                "quantization": header.quantization,
                "size": model.path.stat().st_size,
                "format": model.usual_format,
                "context_size": model.trained_context,
                "error": None,
            }
        yield row


def catalogue_rows(library: Library) -> Iterator[dict[str, Any]]:
    """Yield what `list --available --json` prints of each model of the catalogue."""
    here = {model.spec.name for model in library.models() if model.spec}
    for spec in library.specs:
        yield {
            "name": spec.name,
            "system": spec.system,
            "here": spec.name in here,
            "format": spec.format,
            "context_size": spec.context_size,
            "licence": spec.licence,
            "repo_id": spec.repo_id,
            "quantizations": {quantization.name: quantization.size for quantization in spec.quantizations},
            "notes": spec.notes,
        }
