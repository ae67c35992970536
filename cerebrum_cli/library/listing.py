"""Models as JSON objects for `show`, `list` and `pull --dry-run`: sizes in bytes, contexts in tokens, times in UTC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from cerebrum_cli.core.errors import ModelFileError, ModelNotFound
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.paths import absolute_path
from cerebrum_cli.core.sampling import SAMPLERS
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import format_utc
from cerebrum_cli.core.transfers import OnProgress
from cerebrum_cli.engine.local import Capacity
from cerebrum_cli.gguf.contents import Array, Scalar
from cerebrum_cli.gguf.header import Header, require_generative
from cerebrum_cli.library.catalogue import ModelSpec
from cerebrum_cli.library.fit import DownloadPlan, PlanRequest, planned_context, spec_sizes, thinking_tokens
from cerebrum_cli.library.hub import FoundRepository
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.reference import ModelReference
from cerebrum_cli.library.registry import USED
from cerebrum_cli.library.stores import FoundModel, found_models

SHOWN = ("think", "chat_template")  # settings of a question, besides those of the catalog, its format and context
SUGGESTIONS = 5  # models to choose a first one from: the best, and the smallest of the others


def describe(
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
        "last_used": last_used(library, model),
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
    for key in (*recommended, *SHOWN):
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


def describe_available(
    library: Library, spec: ModelSpec, reference: ModelReference, by_mode: Mapping[str, Settings], context: int | None
) -> tuple[JsonDict, DownloadPlan | None]:
    """Description and quantizations of a catalog model that is not installed."""
    description = {
        "name": spec.name,
        "reference": str(reference),
        "title": spec.title,
        "path": None,
        "size": None,
        "format": spec.format,
        "context_size": spec.context_size,
        "sampling": sampling_object(by_mode),
        "sha256": None,
        "quantization": None,
        "kv_bytes_per_token": spec.kv_bytes_per_token,
        "repo_id": spec.repo_id or spec.weights,
        "revision": spec.revision,
        "license": spec.license,
        "default": False,
        "notes": spec.notes,
        "metadata": None,
    }
    request = PlanRequest(context, reference.quantization, library.capacity())
    return description, known_plan(spec, library.models(), request)


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
        "last_used": last_used(library, model),
        **_facts_of_file(model, capacity),
    }


def _facts_of_file(model: InstalledModel, capacity: Capacity) -> JsonDict:
    try:
        speed = capacity.forecast(model.sizes, thinking_tokens(model.spec))
        return {
            "quantization": model.quantization,
            "size": model.size,
            "format": model.default_format,
            "context_size": model.trained_context,
            "speed": speed and asdict(speed),
            "merged_from": list(model.merged_from),
            "converted_from": model.converted_from or None,
            "error": kind_text(model) or None,
        }
    except ModelFileError as error:
        problem = error.message
    except OSError as error:
        problem = f"{model.path}: {error.strerror}"
    size = model.entry.size if model.entry else None
    unknown = dict.fromkeys(("quantization", "format", "context_size", "speed", "converted_from"))
    return {**unknown, "size": size, "merged_from": [], "error": problem}


def kind_text(model: InstalledModel) -> str:
    """Why a model cannot answer and what to do, as far as its header shows; otherwise no text."""
    try:
        require_generative(model.path, model.header)
    except ModelFileError as error:
        return f"{error.message}; {error.hint}"
    return ""


def found_rows(library: Library) -> Iterator[JsonDict]:
    """Objects of `list --found --json`; `error` is set for a file that cannot be used."""
    names = {entry.path: entry.name for entry in library.registry.entries()}
    for stored in found_models():
        name = names.get(absolute_path(stored.path))
        named = {"reference": stored.reference, "path": str(stored.path), "name": name}
        yield named | _facts_of_stored(library, stored)


def _facts_of_stored(library: Library, stored: FoundModel) -> JsonDict:
    try:
        model = library.model_at(stored.path)
        return {
            "architecture": model.header.architecture,
            "quantization": model.quantization,
            "size": model.size,
            "context_size": model.header.context_length,
            "error": "only Ollama can load it" if stored.needs_ollama else model.header.unsupported,
        }
    except (ModelFileError, ModelNotFound, OSError) as error:
        unknown = dict.fromkeys(("architecture", "quantization", "size", "context_size"))
        return {**unknown, "error": str(error)}


def catalogue_rows(library: Library, context: int | None) -> list[JsonDict]:
    """Objects of `list --available --json`, sorted by how well the models fit this machine."""
    models = library.models()
    installed = {model.spec.name for model in models if model.spec}
    request = PlanRequest(context, None, library.capacity())
    plans = [(spec, known_plan(spec, models, request)) for spec in library.specs]
    ranked = sorted(plans, key=lambda pair: (pair[1] is None, pair[1].rank if pair[1] else ()))
    return [_catalogue_row(spec, plan, spec.name in installed) for spec, plan in ranked]


def suggestions(library: Library, context: int | None) -> list[JsonDict]:
    fitting = [row for row in catalogue_rows(library, context) if row["fit"] == "fits"]
    others = sorted(fitting[SUGGESTIONS - 1 :], key=lambda row: row["size"])
    return [*fitting[: SUGGESTIONS - 1], *others[:1]]


def _catalogue_row(spec: ModelSpec, plan: DownloadPlan | None, is_installed: bool) -> JsonDict:
    return {
        "name": spec.name,
        "aliases": list(spec.aliases),
        "title": spec.title,
        "here": is_installed,
        "format": spec.format,
        "context_size": spec.context_size,
        "license": spec.license,
        "good_for": spec.good_for,
        "repo_id": spec.repo_id or spec.weights,
        **_chosen(plan),
        "quantizations": [asdict(candidate) for candidate in plan.candidates] if plan else [],
        "notes": spec.notes,
    }


def download_plan_object(plan: DownloadPlan) -> JsonDict:
    return {
        "name": plan.name,
        "repo_id": plan.listing.repo_id if plan.listing else plan.spec and plan.spec.repo_id,
        "revision": plan.listing.commit if plan.listing else None,
        "chosen": plan.chosen.quantization,
        "weights": plan.conversion and plan.conversion.size,
        **candidates_object(plan),
    }


def search_row(repository: FoundRepository, plan: DownloadPlan | None) -> JsonDict:
    """Object of `search --json`; without a plan the repository has no model that can be downloaded."""
    return {**repository._asdict(), **_chosen(plan)}


def _chosen(plan: DownloadPlan | None) -> JsonDict:
    if plan is None:
        return dict.fromkeys(("recommended", "size", "memory", "fit", "speed"))
    chosen = plan.chosen
    return {
        "recommended": chosen.quantization,
        "size": chosen.size,
        "memory": chosen.needed,
        "fit": chosen.fit,
        "speed": chosen.speed and asdict(chosen.speed),
    }


def candidates_object(plan: DownloadPlan) -> JsonDict:
    """Table of quantizations, and the context and memory they were assessed with."""
    devices = plan.capacity.devices
    return {
        "context": plan.context,
        "memory": plan.capacity.memory,
        "devices": None if devices is None else [asdict(device) for device in devices],
        "quantizations": [asdict(candidate) for candidate in plan.candidates],
    }


def known_plan(spec: ModelSpec, models: Iterable[InstalledModel], request: PlanRequest) -> DownloadPlan | None:
    """Plan with the quantizations of a catalog model; None without any.

    The sizes of installed files override those of the catalog.
    """
    own = [model for model in models if model.spec == spec and model.is_usable]
    sizes = dict(spec.quantizations)
    if spec.sources:
        sizes = dict(spec.sources[0].quantizations or spec.quantizations)
    sizes |= {model.display_name: model.size for model in own}
    if not sizes:
        return None
    memory, trained_context = spec_sizes(spec), spec.context_size
    if own:
        memory, trained_context = own[0].sizes, own[0].trained_context
    installed = [model.display_name for model in own]
    return request.plan(spec.name, sizes.items(), installed, memory, trained_context, spec)


def quantization_plan(library: Library, model: InstalledModel, context: int | None) -> DownloadPlan | None:
    request = PlanRequest(context, model.display_name, library.capacity())
    others = [installed for installed in library.models() if installed.path != model.path]
    if model.spec:
        return known_plan(model.spec, [*others, model], request)
    uploads = []
    for other in others:
        if model.cached and other.cached and other.name == model.name and other.is_usable:
            uploads.append(other)
    return library.installed_plan([*uploads, model], request)


def last_used(library: Library, model: InstalledModel) -> str | None:
    try:
        return format_utc((library.registry.directory / USED / model.usage_key).stat().st_mtime)
    except OSError:
        return None


def metadata_json(value: Scalar | Array) -> Any:
    if not isinstance(value, Array):
        return value
    if value.values:
        return list(value.values)
    return {"type": value.item_type, "length": value.length}
