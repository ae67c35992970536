"""Ollama's models, which are read as files and never changed.

manifests/HOST/NAMESPACE/MODEL/TAG      JSON that lists layers by media type and digest
blobs/sha256-HEX                        a layer; the one of type _GGUF is the model
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import ModelNotFound, UsageError
from cerebrum_cli.core.files import is_file, read_small_json
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.library.reference import DEFAULT_TAG, OllamaReference

_GGUF, _ADAPTER = "application/vnd.ollama.image.model", "application/vnd.ollama.image.adapter"
_HOST, _NAMESPACE = "registry.ollama.ai", "library"  # which names omit
_ACCESS_HINT = "check its permissions, or join Ollama's group: sudo usermod -aG ollama $USER"


@frozen
class OllamaModel:
    """A model of Ollama: its file, which may be missing or unreadable, and the SHA-256 that its manifest states.

    Ollama applies the `adapters` to it.
    """

    reference: OllamaReference
    path: Path
    sha256: str
    adapters: tuple[Path, ...] = ()


def ollama_models() -> Iterator[OllamaModel]:
    """Yield Ollama's GGUF models, a user's before those of the service."""
    for directory in _directories():
        manifests = directory / "manifests"
        for manifest in _files(manifests):
            reference = OllamaReference(_name(*manifest.relative_to(manifests).parts))
            blobs = directory / "blobs"
            adapters = tuple(blobs / f"sha256-{digest}" for digest in _digests(manifest, _ADAPTER))
            for digest in _digests(manifest, _GGUF):
                yield OllamaModel(reference, blobs / f"sha256-{digest}", digest, adapters)


def unreadable_directories() -> list[ModelNotFound]:
    """What is wrong with the directories of Ollama that exist and cannot be read."""
    errors = []
    for directory in (store / part for store in _directories() for part in ("manifests", "blobs")):
        try:
            os.scandir(directory).close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem = f"cannot read {directory}: {(error.strerror or str(error)).lower()}"
            errors.append(ModelNotFound(problem, _ACCESS_HINT))
    return errors


def find_ollama_model(reference: OllamaReference) -> OllamaModel:
    """The model with this name. Raises ModelNotFound, and UsageError for one with adapters, which would be missing."""
    for model in ollama_models():
        if model.reference.name.lower() == reference.name.lower():
            if model.adapters:
                options = "".join(f" --lora {path}" for path in model.adapters)
                raise UsageError(f"{reference} has an adapter", f"name its files: -m {model.path}{options}")
            return model
    for error in unreadable_directories():
        raise error
    raise ModelNotFound(f"Ollama has no GGUF model {reference.name}", "list its models with cerebrum list --found")


def _directories() -> list[Path]:
    if chosen := environment("OLLAMA_MODELS"):
        return [Path(chosen)]
    return [Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]


def _files(manifests: Path) -> list[Path]:
    try:
        return sorted(path for path in manifests.glob("*/*/*/*") if is_file(path))
    except OSError:
        return []


def _name(host: str, namespace: str, model: str, tag: str) -> str:
    name = f"{model}:{tag}".removesuffix(DEFAULT_TAG)
    if host != _HOST:
        return f"{host}/{namespace}/{name}"
    if namespace != _NAMESPACE:
        return f"{namespace}/{name}"
    return name


def _digests(manifest: Path, media_type: str) -> Iterator[str]:
    """Yield the digests of a type of layer in a manifest; none if it is damaged, or the model is not in GGUF format."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        for layer in read_small_json(manifest)["layers"]:
            if layer["mediaType"] == media_type:
                yield layer["digest"].removeprefix("sha256:")
