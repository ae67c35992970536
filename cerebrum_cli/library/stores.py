"""Models in the stores of Ollama and LM Studio, which are read as files and never changed.

Ollama      manifests/HOST/NAMESPACE/MODEL/TAG         JSON that lists layers by media type and digest
            blobs/sha256-HEX                           a layer; the one of type _OLLAMA_GGUF is the model
LM Studio   PUBLISHER/MODEL/FILE.gguf
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.files import is_file, read_small_json
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import name_from_stem
from cerebrum_cli.gguf.header import read_tables
from cerebrum_cli.library.reference import DEFAULT_TAG, STORES, StoreReference, variants

_OLLAMA_GGUF = "application/vnd.ollama.image.model"
_OLLAMA_HOST, _OLLAMA_LIBRARY = "registry.ollama.ai", "library"
_ACCESS_HINT = "check its permissions; for Ollama, join its group: sudo usermod -aG ollama $USER"
# Files that only Ollama's llama.cpp can load, since its compatibility layer translates them (llama/compat in its
# sources): architectures under names of its own, other parts of the model in the same file, and other tensor names.
_OLLAMA_ARCHITECTURES = ("gptoss", "olmo3", "qwen25vl", "deepseekocr", "glmocr", "glm4moelite", "nemotron_h_omni")
_OLLAMA_PARTS = ("v.", "mm.", "a.", "mtp.", "model.vision_tower.")  # prefixes of tensors
_OLLAMA_NAMES = {  # of tensors and metadata, by architecture
    "lfm2": ("output_norm.weight",),
    "mistral3": ("mistral3.rope.scaling.beta_fast", "mistral3.rope.scaling_beta"),
    **dict.fromkeys(("qwen35", "qwen35moe", "qwen3next"), ("blk.0.ssm_dt",)),
}


@frozen
class FoundModel:
    """A GGUF model in the store of another tool; `sha256` is that of its file, where the store has it."""

    store: Literal["ollama", "lmstudio"]
    name: str
    path: Path
    sha256: str | None = None

    @property
    def reference(self) -> str:
        return f"{self.store}:{self.name}"

    @property
    def needs_ollama(self) -> bool:
        """Whether only Ollama can load it. Raises ModelFileError for a file that is damaged or cannot be read."""
        if self.store != "ollama":
            return False
        tables = read_tables(self.path)
        architecture = str(tables.metadata.get("general.architecture"))
        names = [tensor.name for tensor in tables.tensors]
        if architecture in _OLLAMA_ARCHITECTURES or any(name.startswith(_OLLAMA_PARTS) for name in names):
            return True
        foreign = _OLLAMA_NAMES.get(architecture, ())
        return not {*tables.metadata, *names}.isdisjoint(foreign)

    def is_called(self, name: str) -> bool:
        """Whether a name in its store matches; LM Studio's may omit the publisher, `-GGUF` and the quantization."""
        name = name.lower()
        whole = self.name.lower()
        if self.store == "ollama":
            return name == whole
        short = whole.partition("/")[2]
        forms = (whole, short, short.replace("-gguf:", ":"))
        return name in forms or name in [form.partition(":")[0] for form in forms]


def found_models() -> Iterator[FoundModel]:
    """Yield the models of all stores, a user's before those of a service; a file may be missing or unreadable."""
    for directory in _ollama_directories():
        for manifest in _files(directory / "manifests", "*/*/*/*"):
            name = _ollama_name(*manifest.relative_to(directory / "manifests").parts)
            for digest in _ollama_digests(manifest):
                yield FoundModel("ollama", name, directory / "blobs" / f"sha256-{digest}", digest)
    for folder in sorted({file.parent for file in _files(_lm_studio_directory(), "*/*/*.gguf")}):
        models = variants(file.name for file in folder.iterdir())
        counts = Counter(model.quantization for model in models)
        for quantization, (first, *_) in models:
            if counts[quantization] > 1:
                quantization = name_from_stem(Path(first).stem)
            yield FoundModel("lmstudio", f"{folder.parent.name}/{folder.name}:{quantization}", folder / first)


def unreadable_stores() -> dict[str, ModelNotFound]:
    directories = [("ollama", store / part) for store in _ollama_directories() for part in ("manifests", "blobs")]
    directories.append(("lmstudio", _lm_studio_directory()))
    errors: dict[str, ModelNotFound] = {}
    for store, directory in directories:
        try:
            os.scandir(directory).close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem = f"cannot read {directory}: {(error.strerror or str(error)).lower()}"
            errors.setdefault(store, ModelNotFound(problem, _ACCESS_HINT))
    return errors


def find_in_store(reference: StoreReference) -> FoundModel:
    store, name = reference.store, reference.name
    title = STORES[store]
    matches: dict[str, FoundModel] = {}
    for model in found_models():
        if model.store == store and model.is_called(name):
            matches.setdefault(model.reference, model)
    if not matches:
        unreadable = unreadable_stores().get(store)
        hint = "list its models with cerebrum list --found"
        raise unreadable or ModelNotFound(f"{title} has no GGUF model {name}", hint)
    if len(matches) > 1:
        choices = ", ".join(sorted(matches))
        raise ModelNotFound(f"{title} has several models that match {name}", f"choose one: {choices}")
    [model] = matches.values()
    return model


def _ollama_directories() -> list[Path]:
    own = environment("OLLAMA_MODELS")
    if own:
        return [Path(own)]
    return [Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]


def _ollama_name(host: str, namespace: str, model: str, tag: str) -> str:
    name = f"{model}:{tag}".removesuffix(DEFAULT_TAG)
    if host != _OLLAMA_HOST:
        return f"{host}/{namespace}/{name}"
    if namespace != _OLLAMA_LIBRARY:
        return f"{namespace}/{name}"
    return name


def _ollama_digests(manifest: Path) -> Iterator[str]:
    layers = _read_object(manifest).get("layers")
    if not isinstance(layers, list):
        return
    for layer in layers:
        if isinstance(layer, dict) and layer.get("mediaType") == _OLLAMA_GGUF:
            yield str(layer.get("digest")).removeprefix("sha256:")


def _lm_studio_directory() -> Path:
    home = Path.home() / ".lmstudio"
    chosen = _read_object(home / "settings.json").get("downloadsFolder")
    if isinstance(chosen, str) and chosen:
        return Path(chosen)
    return home / "models"


def _files(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in directory.glob(pattern) if is_file(path))
    except OSError:
        return []


def _read_object(path: Path) -> JsonDict:
    with suppress(OSError, ValueError):
        value = read_small_json(path)
        if isinstance(value, dict):
            return value
    return {}
