"""Models as JSON objects for `show`, `list` and `pull`: sizes in bytes, contexts in tokens, times in UTC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.errors import ModelFileError, ModelNotFound
from cerebrum_cli.core.events import OnProgress
from cerebrum_cli.core.files import absolute_path
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.sampling import SAMPLERS
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.capacity import Capacity, planned_context
from cerebrum_cli.gguf.contents import Array, Scalar
from cerebrum_cli.gguf.header import Header

if TYPE_CHECKING:
    from cerebrum_cli.library.installed import InstalledModel
    from cerebrum_cli.library.library import Library

SUGGESTIONS = 5  # models that fit, beside those that the program was made for, to choose a first one from
# Keys of tables of models, and what they show of a quantization.
BEST_FIT = {"recommended": "quantization", "size": "size", "memory": "needed", "fit": "fit", "speed": "speed"}


def model_object(
    library: Library,
    model: InstalledModel,
    settings: Settings,
    by_mode: Mapping[str, Settings],
    on_progress: OnProgress | None,
) -> JsonDict:
    """Object of `show --json`, without the table of quantizations.

    `settings` are those of a question, `by_mode` those with thinking on, and off.
    """
    spec = model.spec
    cached = model.cached
    license_name = model.text_of("general.license") or None
    repo_id = cached.repo_id if cached else None
    if spec:
        license_name = spec.license or license_name
        repo_id = repo_id or spec.repo_id
    return {
        "name": model.name,
        "reference": model.reference,
        "path": str(model.path),
        "size": model.size,
        "format": model.default_format,
        "context_size": model.trained_context,
        "ask": _asked(model, settings),
        "sampling": sampling_object(by_mode),
        "sha256": library.registry.digest(model.path, on_progress).sha256,
        "quantization": model.quantization,
        **_header_object(model.header),
        "source": model.source,
        "merged_from": list(model.merged_from),
        "converted_from": model.converted_from or None,
        "repo_id": repo_id,
        "revision": cached.commit if cached else None,
        "license": license_name,
        "default": library.is_default(model),
        "last_used": library.registry.last_used(model.usage_key),
        "notes": spec.notes if spec else "",
        "files": [str(path) for path in model.paths],
        "metadata": {key: metadata_json(value) for key, value in model.header.metadata.items()},
    }


def _asked(model: InstalledModel, settings: Settings) -> JsonDict:
    """Settings of a question, without those of samplers."""
    asked = {
        "format": settings.format or model.default_format,
        "context": planned_context(settings.ctx, model.trained_context),
    }
    recommended = model.spec.settings if model.spec else ()
    for key in (*recommended, "think"):
        value = getattr(settings, key)
        if key not in SAMPLERS and value is not None:
            asked[key] = value
    return asked


def _header_object(header: Header) -> JsonDict:
    sizes = header.sizes
    return {
        "tensor_types": dict(header.tensor_types),
        "architecture": header.architecture,
        "unsupported": header.unsupported,
        "parameters": header.parameters,
        "layers": header.n_layers,
        "heads": sizes.n_heads,
        "kv_heads": header.n_kv_heads,
        "embedding_length": sizes.embedding_length,
        "vocabulary_size": sizes.vocabulary_size,
        "kv_bytes_per_token": header.kv_bytes_per_token,
        "chat_template": header.chat_template is not None,
    }


def sampling_object(by_mode: Mapping[str, Settings]) -> JsonDict:
    described = {}
    for mode, settings in by_mode.items():
        samplers = settings.samplers.items()
        described[mode] = {key: {"value": value, "origin": settings.origin(key)} for key, value in samplers}
    return described


def row(library: Library, model: InstalledModel, capacity: Capacity) -> JsonDict:
    """Object of `list --json`."""
    cached = model.cached
    return {
        "name": model.name,
        "reference": model.reference,
        "path": str(model.path),
        "default": library.is_default(model),
        "source": model.source,
        "repo_id": cached.repo_id if cached else None,
        "revision": cached.commit if cached else None,
        "last_used": library.registry.last_used(model.usage_key),
        **_facts_of_file(model, capacity),
    }


def _facts_of_file(model: InstalledModel, capacity: Capacity) -> JsonDict:
    try:
        speed = capacity.forecast(model.sizes, model.spec.thinking_tokens if model.spec else 0)
        return {
            "quantization": model.quantization,
            "size": model.size,
            "format": model.default_format,
            "context_size": model.trained_context,
            "speed": speed and asdict(speed),
            "merged_from": list(model.merged_from),
            "converted_from": model.converted_from or None,
            "error": refusal_text(model),
        }
    except (ModelFileError, OSError):
        size = model.entry.size if model.entry else None
        unknown = dict.fromkeys(("quantization", "format", "context_size", "speed", "converted_from"))
        return {**unknown, "size": size, "merged_from": [], "error": refusal_text(model)}


def refusal_text(model: InstalledModel) -> str | None:
    """Why a model cannot answer, and what to do; None if it can."""
    return f"{model.refusal.message}; {model.refusal.hint}" if model.refusal else None


def found_rows(library: Library) -> Iterator[JsonDict]:
    """Objects of `list --found --json`; `error` is set for a file that cannot be used."""
    names = {entry.path: entry.name for entry in library.registry.entries()}
    for stored in library.models_of_ollama()[0]:
        name = names.get(absolute_path(stored.path))
        named = {"reference": str(stored.reference), "path": str(stored.path), "name": name}
        try:
            model = library.model_at(stored.path)
            facts = {
                "architecture": model.header.architecture,
                "quantization": model.quantization,
                "size": model.size,
                "context_size": model.header.context_length,
                "error": refusal_text(model),
            }
        except (ModelFileError, ModelNotFound, OSError) as error:
            unknown = dict.fromkeys(("architecture", "quantization", "size", "context_size"))
            facts = {**unknown, "error": str(error)}
        yield named | facts


def catalogue_rows(library: Library, context: int | None) -> list[JsonDict]:
    """Objects of `list --available --json`, sorted by how well the models fit this machine."""
    models = library.models()
    installed = {model.spec.name for model in models if model.spec}
    request = library.fit_request(context)
    assessed = [(spec, request.assess_spec(spec, models)) for spec in library.catalogue.specs]
    rows = []
    for spec, available in sorted(assessed, key=lambda pair: (pair[1] is None, pair[1].rank if pair[1] else ())):
        described = {
            "name": spec.name,
            "aliases": list(spec.aliases),
            "title": spec.title,
            "here": spec.name in installed,
            "format": spec.format,
            "context_size": spec.context_size,
            "license": spec.license,
            "good_for": spec.good_for,
            "tested": spec.tested,
            "made_for": spec.made_for,
            "repo_id": spec.repo_id or spec.weights,
            **best_fit(asdict(available.chosen) if available else {}),
            "quantizations": [asdict(candidate) for candidate in available.candidates] if available else [],
            "notes": spec.notes,
        }
        rows.append(described)
    return rows


def best_fit(chosen: JsonObject) -> JsonDict:
    """What tables of models show of the chosen quantization of each; nulls without one."""
    return {key: chosen.get(name) for key, name in BEST_FIT.items()}


def suggestions(library: Library, context: int | None) -> list[JsonDict]:
    """The largest tested model that fits this machine, those that the program was made for, and others that fit."""
    rows = catalogue_rows(library, context)
    fitting = [row for row in rows if row["fit"] == "fits"]
    tested = sorted((row for row in fitting if row["tested"]), key=lambda row: row["size"])[-1:]
    made_for = [row for row in rows if row["made_for"]]
    others = [row for row in fitting if not (row["tested"] or row["made_for"])]
    return [*tested, *made_for, *others[: SUGGESTIONS - len(tested)]]


def metadata_json(value: Scalar | Array) -> Any:
    if not isinstance(value, Array):
        return value
    if value.values:
        return list(value.values)
    return {"type": value.item_type, "length": value.length}
