"""Recipes of merges: mergekit's YAML, as published, becomes a value once; an error names the location it is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cerebrum_cli.merge.document import read_document
from cerebrum_cli.merge.fields import read_dtype, read_layer_range, read_model
from cerebrum_cli.merge.location import Location, choices, quoted, read_items, read_mapping, read_text
from cerebrum_cli.merge.parameters import Parameters, read_parameters

Method = Literal["passthrough", "linear", "slerp", "task_arithmetic"]


@dataclass(frozen=True, slots=True)
class Source:
    """Layers of a model: from the first number up to the second, which is not among them; None for all there are."""

    model: str
    layer_range: tuple[int, int] | None
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of the result, made of as many of each source; `base_model` is the slice's own, or else the recipe's."""

    sources: tuple[Source, ...]
    parameters: Parameters
    base_model: str | None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge as it is asked for; of its models nothing is known but what the recipe calls them.

    `dtype` is F32, F16 or BF16; `tokenizer_source` is `union`, `base` or a model; `text` is what was read.
    """

    method: Method
    slices: tuple[Slice, ...]
    parameters: Parameters
    base_model: str | None
    dtype: str | None
    tokenizer_source: str | None
    name: str | None
    text: str

    @property
    def models(self) -> tuple[str, ...]:
        """The models named, each once and those of the sources first."""
        named = [source.model for part in self.slices for source in part.sources]
        bases = [*(part.base_model for part in self.slices), self.base_model]
        tokenizer = None if self.tokenizer_source in _NO_MODEL else self.tokenizer_source
        return tuple(dict.fromkeys([*named, *filter(None, [*bases, tokenizer])]))

    @property
    def tokenizer_model(self) -> str:
        """The model whose tokenizer the result has."""
        named = None if self.tokenizer_source in _NO_MODEL else self.tokenizer_source
        return named or self.base_model or self.models[0]


class _ParsedSlice(NamedTuple):
    """A slice, and where it and each of its sources stand."""

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
)
_NO_MODEL = ("union", "base")  # the tokenizers that are told without a model's name


def parse_recipe(text: str, where: str) -> Recipe:
    """Parse a recipe; `where` is its file name. Raises UsageError, with the location of the problem."""
    root = Location(where)
    row = _unwrap_module(root, read_mapping(root, read_document(root, text), (*_KEYS, "modules")))
    method = _method(root, row.get("merge_method"))
    parameters = _parameters(root, row)
    base_model = _base_model(root, row)
    parts = _parse_slices(root, row, base_model)
    for part in parts:
        _REQUIREMENTS[method](part, parameters)
    if row.get("chat_template", "auto") != "auto":
        raise root.key("chat_template").error("cerebrum supports none but `auto`", "leave it out")
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
    )


def _unwrap_module(root: Location, row: Mapping[str, object]) -> Mapping[str, object]:
    """Return a recipe that says of its only module what others say of the whole, as one of those."""
    if "modules" not in row:
        return row
    location, modules = root.key("modules"), row["modules"]
    if not isinstance(modules, dict) or len(modules) != 1:
        raise location.error(
            "cerebrum merges models of one module", "write the slices or models of the language model only"
        )
    [(name, module)] = modules.items()
    inner = read_mapping(location.key(str(name)), module, ("slices", "models", "parameters"))
    if both := inner.keys() & row.keys():
        raise location.error(f"{min(both)} is given in the module and beside it", "leave one of them out")
    return {key: value for key, value in (*row.items(), *inner.items()) if key != "modules"}


def _method(root: Location, value: object) -> Method:
    if value is None:
        raise root.key("merge_method").error("it is missing", choices(value, tuple(_REQUIREMENTS)))
    for method in _REQUIREMENTS:
        if method == value:
            return method
    raise root.error(f"merge_method {quoted(value)} is not one cerebrum has", choices(value, tuple(_REQUIREMENTS)))


def _parse_slices(root: Location, row: Mapping[str, object], base_model: str | None) -> list[_ParsedSlice]:
    if ("slices" in row) == ("models" in row):
        problem = "slices and models are both given" if "slices" in row else "neither slices nor models are given"
        raise root.error(problem, "give slices for a merge of layers, or models for one of whole models")
    if "models" in row:
        return [_whole_models(root, row["models"], base_model)]
    return [_slice(location, item, base_model) for location, item in read_items(root.key("slices"), row["slices"])]


def _whole_models(root: Location, value: object, base_model: str | None) -> _ParsedSlice:
    """Return the one slice of all layers, the base model among its sources."""
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
            problem = f"it is {count} layers, and those of the first source are {counts[0]}"
            raise item_location.key("layer_range").error(problem, "give all sources of a slice as many layers")
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
        raise root.error("tokenizer and tokenizer_source are both given", "leave one of them out")
    location, value = root.key("tokenizer_source"), row.get("tokenizer_source")
    if "tokenizer" in row:
        location = root.key("tokenizer")
        inner = read_mapping(location, row["tokenizer"], ("source",), unsupported=("tokens", "pad_to_multiple_of"))
        location, value = location.key("source"), inner.get("source", "union")  # as mergekit has it
    if value is None or value in _NO_MODEL:
        return None if value is None else str(value)
    return read_model(location, value.removeprefix("model:") if isinstance(value, str) else value)


# What a method needs of each slice, `shared` being the parameters of the whole recipe.


def _passthrough(part: _ParsedSlice, _shared: Parameters) -> None:
    count = len(part.slice.sources)
    if count != 1:
        problem = f"passthrough takes one source a slice, and there are {count}"
        raise part.location.error(problem, "give each source a slice of its own, or name another merge_method")


def _linear(part: _ParsedSlice, shared: Parameters) -> None:
    _require_weights(part, shared, but=None)


def _task_arithmetic(part: _ParsedSlice, shared: Parameters) -> None:
    _require_weights(part, shared, but=_base_among(part, "task_arithmetic"))


def _slerp(part: _ParsedSlice, shared: Parameters) -> None:
    models = [source.model for source in part.slice.sources]
    base_model = _base_among(part, "slerp")
    if len(models) != 2 or len(set(models)) != 2:
        problem = f"slerp takes two sources, of two models, and there are {len(models)}, of {len(set(models))}"
        raise part.location.error(problem, f"give it two: {quoted(base_model)} and another")
    for source, location in zip(part.slice.sources, part.locations, strict=True):
        if "t" in source.parameters:
            problem = "slerp has one t for both sources"
            raise location.key("parameters").key("t").error(problem, "give it to the slice or to the whole recipe")
    if "t" not in part.slice.parameters and "t" not in shared:
        problem = "slerp needs a t, from 0 for the base_model to 1 for the other"
        raise part.location.error(problem, "give one in parameters, of the slice or of the whole recipe")


def _base_among(part: _ParsedSlice, method: Method) -> str:
    """Return the base model of a slice that has it among its sources."""
    base_model = part.slice.base_model
    if base_model is None:
        raise part.location.error(f"{method} needs a base_model", "name one of the models as base_model")
    if all(source.model != base_model for source in part.slice.sources):
        problem = f"the base_model {quoted(base_model)} is not among the sources"
        raise part.location.error(problem, f"{method} needs it there: add it, or name one of them as base_model")
    return base_model


def _require_weights(part: _ParsedSlice, shared: Parameters, but: str | None) -> None:
    if "weight" in part.slice.parameters or "weight" in shared:
        return
    for source, location in zip(part.slice.sources, part.locations, strict=True):
        if "weight" not in source.parameters and source.model != but:
            problem = f"{quoted(source.model)} has no weight"
            raise location.error(problem, "give each source one in its parameters, or all of them one in the recipe's")


_REQUIREMENTS: Mapping[Method, Callable[[_ParsedSlice, Parameters], None]] = {
    "passthrough": _passthrough,
    "linear": _linear,
    "slerp": _slerp,
    "task_arithmetic": _task_arithmetic,
}
