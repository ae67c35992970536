"""Parse mergekit recipes in YAML; an error names the location in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cerebrum_cli.merge.document import read_document
from cerebrum_cli.merge.fields import read_dtype, read_layer_range, read_model
from cerebrum_cli.merge.location import (
    Location,
    choices,
    nearest,
    printable,
    quoted,
    read_items,
    read_mapping,
    read_text,
    require_mapping,
)
from cerebrum_cli.merge.parameters import Parameters, read_parameters

Method = Literal["passthrough", "linear", "slerp", "task_arithmetic"]


@dataclass(frozen=True, slots=True)
class Source:
    """Layers of a model: start and end of the range, end not included; None for all layers."""

    model: str
    layer_range: tuple[int, int] | None
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of the result, computed from equally many of each source; `base_model` defaults to the recipe's."""

    sources: tuple[Source, ...]
    parameters: Parameters
    base_model: str | None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A parsed recipe; models are the names it uses.

    `dtype` is F32, F16 or BF16; `tokenizer_source` is `union`, `base` or a model; `text` is the YAML source;
    `ignored_keys` are unknown keys of the top level, which mergekit ignores too.
    """

    method: Method
    slices: tuple[Slice, ...]
    parameters: Parameters
    base_model: str | None
    dtype: str | None
    tokenizer_source: str | None
    name: str | None
    text: str
    ignored_keys: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """All models named, without duplicates, those of the sources first."""
        named = [source.model for part in self.slices for source in part.sources]
        bases = [*(part.base_model for part in self.slices), self.base_model]
        tokenizer = None if self.tokenizer_source in _NO_MODEL else self.tokenizer_source
        return tuple(dict.fromkeys([*named, *filter(None, [*bases, tokenizer])]))

    @property
    def tokenizer_model(self) -> str:
        """Model whose tokenizer the result has."""
        named = None if self.tokenizer_source in _NO_MODEL else self.tokenizer_source
        return named or self.base_model or self.models[0]


class _ParsedSlice(NamedTuple):
    """A slice, with the locations of itself and of each source."""

    slice: Slice
    location: Location
    locations: tuple[Location, ...]


_KEYS = (
    "merge_method",
    "slices",
    "models",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
    "modules",
)
_OTHER_METHODS = (  # mergekit's
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "karcher",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "ram",
    "ramplus_tl",
    "sce",
    "ties",
)
_TYPO_SIMILARITY = 0.8  # unknown keys more similar than this to a known one are refused as typing errors
_NO_MODEL = ("union", "base")  # values of tokenizer_source that are not models


def parse_recipe(text: str, where: str) -> Recipe:
    """Parse a recipe; `where` is its file name. Raises UsageError, with the location of the problem."""
    root = Location(where)
    content, anchored_keys = read_document(root, text)
    document = require_mapping(root, content, _KEYS)
    method = _supported_method(root, document)
    ignored = tuple(
        key
        for key in document
        if key not in _KEYS and (key in anchored_keys or not nearest(key, _KEYS, _TYPO_SIMILARITY))
    )
    row = _unwrap_module(root, read_mapping(root, document, _KEYS, ignored))
    if method is None:
        raise root.key("merge_method").error("missing", choices(None, tuple(_REQUIREMENTS)))
    parameters = _parameters(root, row)
    base_model = _base_model(root, row)
    parts = _parse_slices(root, row, base_model)
    for part in parts:
        _REQUIREMENTS[method](part, parameters)
    if row.get("chat_template", "auto") != "auto":
        raise root.key("chat_template").error("only `auto` is supported", "remove it")
    dtypes = [read_dtype(root.key(key), row[key]) for key in ("out_dtype", "dtype") if key in row]
    return Recipe(
        method=method,
        slices=tuple(part.slice for part in parts),
        parameters=parameters,
        base_model=base_model,
        dtype=dtypes[0] if dtypes else None,
        tokenizer_source=_tokenizer_source(root, row),
        name=read_text(root.key("name"), row["name"], "a name") if "name" in row else None,
        text=text,
        ignored_keys=tuple(printable(quoted(key)) for key in ignored),
    )


def _supported_method(root: Location, document: Mapping[object, object]) -> Method | None:
    """The merge method, None if there is none. Raises UsageError for any other, before other errors in a recipe."""
    value, hint = document.get("merge_method"), choices(None, tuple(_REQUIREMENTS))
    for method in _REQUIREMENTS:
        if method == value:
            return method
    if value in _OTHER_METHODS:
        raise root.error(f"merge_method {value} is not supported", hint)
    if value is not None:
        raise root.error(f"unknown merge_method {quoted(value)}", choices(value, tuple(_REQUIREMENTS)))
    if document.get("experts") is not None:
        raise root.error("mergekit-moe recipes, which build a mixture of experts, are not supported", hint)
    return None


def _unwrap_module(root: Location, row: Mapping[str, object]) -> Mapping[str, object]:
    """Move the keys of a recipe's only module to the top level."""
    if "modules" not in row:
        return row
    location, modules = root.key("modules"), row["modules"]
    if not isinstance(modules, dict) or len(modules) != 1:
        raise location.error("only one module is supported", "write the slices or models of the language model only")
    [(name, module)] = modules.items()
    inner = read_mapping(location.key(str(name)), module, ("slices", "models", "parameters"))
    if both := inner.keys() & row.keys():
        raise location.error(f"{min(both)} is given inside and outside of the module", "remove one of them")
    return {key: value for key, value in (*row.items(), *inner.items()) if key != "modules"}


def _parse_slices(root: Location, row: Mapping[str, object], base_model: str | None) -> list[_ParsedSlice]:
    if ("slices" in row) == ("models" in row):
        problem = "both slices and models are given" if "slices" in row else "neither slices nor models are given"
        raise root.error(problem, "give slices to merge layers, or models to merge whole models")
    if "models" in row:
        return [_whole_models(root, row["models"], base_model)]
    return [_slice(location, item, base_model) for location, item in read_items(root.key("slices"), row["slices"])]


def _whole_models(root: Location, value: object, base_model: str | None) -> _ParsedSlice:
    """One slice of all layers, with the base model among its sources."""
    location = root.key("models")
    read = [
        (item_location, _source(item_location, item, ("model", "parameters")))
        for item_location, item in read_items(location, value)
    ]
    if base_model is not None and all(source.model != base_model for _, source in read):
        read.append((root.key("base_model"), Source(base_model, None, {})))
    return _ParsedSlice(
        Slice(tuple(source for _, source in read), {}, base_model),
        location,
        tuple(item_location for item_location, _ in read),
    )


def _slice(location: Location, value: object, base_model: str | None) -> _ParsedSlice:
    row = read_mapping(location, value, ("sources", "parameters", "base_model"), unsupported=("residual_weight",))
    keys = ("model", "layer_range", "parameters")
    items = read_items(location.key("sources"), row.get("sources"))
    read = [(item_location, _source(item_location, item, keys)) for item_location, item in items]
    counts = [source.layer_range[1] - source.layer_range[0] for _, source in read if source.layer_range]
    for (item_location, _), count in zip(read, counts, strict=True):
        if count != counts[0]:
            problem = f"{count} layers, but the first source has {counts[0]}"
            raise item_location.key("layer_range").error(problem, "use the same number of layers from each source")
    part = Slice(
        tuple(source for _, source in read), _parameters(location, row), _base_model(location, row) or base_model
    )
    return _ParsedSlice(part, location, tuple(item_location for item_location, _ in read))


def _source(location: Location, value: object, keys: tuple[str, ...]) -> Source:
    row = read_mapping(location, value, keys)
    model = read_model(location.key("model"), row.get("model"))
    layers = read_layer_range(location.key("layer_range"), row.get("layer_range")) if "layer_range" in keys else None
    return Source(model, layers, _parameters(location, row))


def _base_model(location: Location, row: Mapping[str, object]) -> str | None:
    return read_model(location.key("base_model"), row["base_model"]) if "base_model" in row else None


def _parameters(location: Location, row: Mapping[str, object]) -> Parameters:
    return read_parameters(location.key("parameters"), row.get("parameters", {}))


def _tokenizer_source(root: Location, row: Mapping[str, object]) -> str | None:
    if "tokenizer" in row and "tokenizer_source" in row:
        raise root.error("both tokenizer and tokenizer_source are given", "remove one of them")
    location, value = root.key("tokenizer_source"), row.get("tokenizer_source")
    if "tokenizer" in row:
        location = root.key("tokenizer")
        inner = read_mapping(location, row["tokenizer"], ("source",), unsupported=("tokens", "pad_to_multiple_of"))
        location, value = location.key("source"), inner.get("source", "union")  # mergekit's default
    if value is None or value in _NO_MODEL:
        return None if value is None else str(value)
    return read_model(location, value.removeprefix("model:") if isinstance(value, str) else value)


# Requirements of the methods on each slice; `shared` are the parameters of the whole recipe.


def _passthrough(part: _ParsedSlice, _shared: Parameters) -> None:
    count = len(part.slice.sources)
    if count != 1:
        problem = f"passthrough takes one source per slice, not {count}"
        raise part.location.error(problem, "give each source its own slice, or use another merge_method")


def _linear(part: _ParsedSlice, shared: Parameters) -> None:
    _require_weights(part, shared, except_model=None)


def _task_arithmetic(part: _ParsedSlice, shared: Parameters) -> None:
    _require_weights(part, shared, except_model=_require_base_model(part, "task_arithmetic"))


def _slerp(part: _ParsedSlice, shared: Parameters) -> None:
    models = [source.model for source in part.slice.sources]
    base_model = _require_base_model(part, "slerp")
    if len(models) != 2 or len(set(models)) != 2:
        problem = f"slerp takes two sources of different models, not {len(models)} of {len(set(models))}"
        raise part.location.error(problem, f"use two: {quoted(base_model)} and another")
    for source, location in zip(part.slice.sources, part.locations, strict=True):
        if "t" in source.parameters:
            problem = "slerp takes one t for both sources"
            raise (
                location.key("parameters")
                .key("t")
                .error(problem, "move it to the parameters of the slice or the recipe")
            )
    if "t" not in part.slice.parameters and "t" not in shared:
        problem = "slerp needs t, from 0 (base_model) to 1 (the other model)"
        raise part.location.error(problem, "add it to the parameters of the slice or the recipe")


def _require_base_model(part: _ParsedSlice, method: Method) -> str:
    """Base model of a slice. Raises UsageError if it is not among the sources."""
    base_model = part.slice.base_model
    if base_model is None:
        raise part.location.error(f"{method} needs a base_model", "make one of the models the base_model")
    if all(source.model != base_model for source in part.slice.sources):
        problem = f"the base_model {quoted(base_model)} is not among the sources"
        raise part.location.error(problem, "add it, or make one of the sources the base_model")
    return base_model


def _require_weights(part: _ParsedSlice, shared: Parameters, except_model: str | None) -> None:
    if "weight" in part.slice.parameters or "weight" in shared:
        return
    for source, location in zip(part.slice.sources, part.locations, strict=True):
        if "weight" not in source.parameters and source.model != except_model:
            problem = f"{quoted(source.model)} has no weight"
            raise location.error(problem, "add one to the parameters of each source, or of the recipe")


_REQUIREMENTS: Mapping[Method, Callable[[_ParsedSlice, Parameters], None]] = {
    "passthrough": _passthrough,
    "linear": _linear,
    "slerp": _slerp,
    "task_arithmetic": _task_arithmetic,
}
