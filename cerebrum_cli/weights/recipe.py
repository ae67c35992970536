"""Parse mergekit recipes in YAML; an error names the location in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.weights.document import Field, choices, printable, quoted, read_document, suggestion

Method = Literal["passthrough", "linear", "slerp", "task_arithmetic"]
Names = tuple[str, ...]  # of models, of keys, or parts of those of tensors


class ConditionalValue(NamedTuple):
    """A value for tensors with `filter` in their names, or for all; a tuple is a gradient over a slice's layers."""

    value: float | tuple[float, ...]
    filter: str | None


Parameters = Mapping[str, tuple[ConditionalValue, ...]]  # the first entry whose filter matches is used


@frozen
class SliceSource:
    """Layers of a model: start and end of the range, end not included; None for all layers."""

    model: str
    layer_range: tuple[int, int] | None
    parameters: Parameters


@frozen
class Slice:
    """Layers of the result, computed from equally many of each source; `base_model` defaults to the recipe's."""

    sources: tuple[SliceSource, ...]
    parameters: Parameters
    base_model: str | None

    @property
    def models(self) -> Names:
        return tuple(source.model for source in self.sources)

    @property
    def base(self) -> int:
        """Index of the source whose types and shapes the result has: the base model's, otherwise the first."""
        return self.models.index(self.base_model) if self.base_model in self.models else 0


@frozen
class Recipe:
    """A parsed recipe; models are the names it uses.

    `dtype` is F32, F16 or BF16; `tokenizer` is a model, if the recipe names one; `text` is the YAML source;
    `ignored_keys` are unknown keys of the top level, which mergekit ignores too.
    """

    method: Method
    slices: tuple[Slice, ...]
    parameters: Parameters
    base_model: str | None
    dtype: str | None
    tokenizer: str | None
    name: str | None
    text: str
    ignored_keys: Names = ()

    @property
    def models(self) -> Names:
        names: list[str | None] = []
        for part in self.slices:
            names += part.models
        for part in self.slices:
            names.append(part.base_model)
        names += [self.base_model, self.tokenizer]
        return tuple(dict.fromkeys(filter(None, names)))

    @property
    def filters(self) -> Names:
        levels = [self.parameters]
        for part in self.slices:
            levels.append(part.parameters)
            levels += [source.parameters for source in part.sources]
        found = []
        for level in levels:
            for values in level.values():
                found += [row.filter for row in values if row.filter]
        return tuple(dict.fromkeys(found))

    @property
    def tokenizer_model(self) -> str:
        return self.tokenizer or self.base_model or self.models[0]


_METHODS: tuple[Method, ...] = get_args(Method)
_TOP_LEVEL = """
merge_method slices models base_model parameters dtype out_dtype tokenizer_source tokenizer chat_template name
"""
_KEYS = tuple(_TOP_LEVEL.split())
_PARAMETERS = ("weight", "normalize", "t", "scale", "lambda")
# Parameters of other mergekit methods, or of its execution, which published recipes contain without using them.
_UNUSED_PARAMETERS = ("density", "embed_slerp", "epsilon", "gamma", "int8_mask", "rescale")
_DTYPES = {"float32": "F32", "fp32": "F32", "float16": "F16", "fp16": "F16", "bfloat16": "BF16", "bf16": "BF16"}
_NO_MODEL = (None, "union", "base")  # values of tokenizer_source that are not models


def parse_recipe(text: str, where: str) -> Recipe:
    """Parse a recipe; `where` is its file name. Raises UsageError, with the location of the problem."""
    root = read_document(where, text)
    root.require_mapping(_KEYS)
    method = _method(root["merge_method"])
    ignored = [key for key in root.value if key not in _KEYS]
    for key in ignored:
        if suggestion(key, _KEYS):
            raise root.unknown_key(key, _KEYS)
    parameters, base_model = _parameters(root["parameters"]), _optional_model(root["base_model"])
    slices = _slices(root, method, parameters, base_model)
    if root["chat_template"].value not in (None, "auto"):
        raise root["chat_template"].error("only `auto` is supported", "remove it")
    dtype, out_dtype = _dtype(root["dtype"]), _dtype(root["out_dtype"])
    return Recipe(
        method=method,
        slices=slices,
        parameters=parameters,
        base_model=base_model,
        dtype=out_dtype or dtype,
        tokenizer=_tokenizer(root),
        name=None if root["name"].value is None else root["name"].text("a name"),
        text=text,
        ignored_keys=tuple(printable(quoted(key)) for key in ignored),
    )


def _method(field: Field) -> Method:
    for method in _METHODS:
        if method == field.value:
            return method
    raise field.error(field.missing or f"{quoted(field.value)} is not supported", choices(field.value, _METHODS))


def _slices(root: Field, method: Method, parameters: Parameters, base_model: str | None) -> tuple[Slice, ...]:
    slices, models = root["slices"], root["models"]
    if slices.missing == models.missing:
        raise root.error("not one of slices and models", "give slices to merge layers, or models to merge whole models")
    if models.missing:
        return tuple(_slice(field, method, parameters, base_model) for field in slices.items())
    # one slice of all layers, with the base model among its sources
    fields = models.items()
    sources = [_source(field, ("model", "parameters")) for field in fields]
    if base_model is not None and base_model not in [source.model for source in sources]:
        sources.append(SliceSource(base_model, None, {}))
        fields.append(root["base_model"])
    part = Slice(tuple(sources), {}, base_model)
    _check_method(method, part, parameters, models, fields)
    return (part,)


def _slice(field: Field, method: Method, shared: Parameters, base_model: str | None) -> Slice:
    field.require_keys(("sources", "parameters", "base_model"))
    fields = field["sources"].items()
    sources = [_source(source_field, ("model", "layer_range", "parameters")) for source_field in fields]
    part = Slice(tuple(sources), _parameters(field["parameters"]), _optional_model(field["base_model"]) or base_model)
    _check_method(method, part, shared, field, fields)
    return part


def _source(field: Field, keys: Names) -> SliceSource:
    field.require_keys(keys)
    layers = _layer_range(field["layer_range"]) if "layer_range" in keys else None
    return SliceSource(_model(field["model"]), layers, _parameters(field["parameters"]))


def _check_method(method: Method, part: Slice, shared: Parameters, field: Field, fields: Sequence[Field]) -> None:
    """Raise UsageError if a slice lacks what the method needs; `fields` are those of its sources."""
    stated = {*part.parameters, *shared}
    if method in ("slerp", "task_arithmetic"):
        _check_base(method, part, field)
    if method == "passthrough" and len(part.models) != 1:
        raise field.error(
            f"passthrough takes one source per slice, not {len(part.models)}",
            "give each source its own slice, or use another merge_method",
        )
    if method == "slerp":
        _check_slerp(part, stated, field)
    elif method != "passthrough" and "weight" not in stated:
        for source, source_field in zip(part.sources, fields, strict=True):
            needs_weight = method == "linear" or source.model != part.base_model
            if needs_weight and "weight" not in source.parameters:
                hint = "add one to the parameters of each source, or of the recipe"
                raise source_field.error(f"{quoted(source.model)} has no weight", hint)


def _check_base(method: Method, part: Slice, field: Field) -> None:
    if part.base_model is None:
        raise field.error(f"{method} needs a base_model", "make one of the models the base_model")
    if part.base_model not in part.models:
        raise field.error(
            f"the base_model {quoted(part.base_model)} is not among the sources",
            "add it, or make one of the sources the base_model",
        )


def _check_slerp(part: Slice, stated: set[str], field: Field) -> None:
    count, different = len(part.models), len({*part.models})
    if (count, different) != (2, 2):
        raise field.error(
            f"slerp takes two sources of different models, not {count} of {different}",
            f"use two: {quoted(part.base_model)} and another",
        )
    if "t" not in stated:
        hint = "add it to the parameters of the slice or the recipe"
        raise field.error("slerp needs t, from 0 (base_model) to 1 (the other model)", hint)


def _optional_model(field: Field) -> str | None:
    return None if field.missing else _model(field)


def _model(field: Field) -> str:
    """A model name, also in mergekit's mapping forms: a path, possibly within `model`."""
    if isinstance(field.value, dict):
        key = "model" if "model" in field.value else "path"
        field.require_keys((key,))
        return _model(field[key])
    name = field.text("a model name")
    if "+" in name and not name.lower().endswith(".gguf"):  # mergekit's `model+lora`
        raise field.error(f"{quoted(name)}: LoRA adapters are not supported", "name a model without a `+`")
    return name


def _layer_range(field: Field) -> tuple[int, int]:
    match field.value:
        case [int(start), int(end)] if bool not in (type(start), type(end)) and 0 <= start < end:
            return start, end
    raise field.error(
        field.missing or "not a range of layers",
        "write [START, END]: the first layer, counted from 0, and the end, which is not included",
    )


def _dtype(field: Field) -> str | None:
    if field.missing:
        return None
    name = str(field.value).lower().removeprefix("torch.")
    if name not in _DTYPES:
        raise field.error(f"{quoted(field.value)} is not a supported dtype", "use float32, float16 or bfloat16")
    return _DTYPES[name]


def _tokenizer(root: Field) -> str | None:
    source = root["tokenizer_source"]
    if not root["tokenizer"].missing:
        if not source.missing:
            raise root.error("both tokenizer and tokenizer_source are given", "remove one of them")
        root["tokenizer"].require_keys(("source",))
        source = root["tokenizer"]["source"]
    if source.value in _NO_MODEL:
        return None
    return _model(source).removeprefix("model:")


def _parameters(field: Field) -> Parameters:
    parameters: dict[str, tuple[ConditionalValue, ...]] = {}
    if field.missing:
        return parameters
    field.require_keys((*_PARAMETERS, *_UNUSED_PARAMETERS))
    for name in field.value:
        if name in _PARAMETERS and not field[name].missing:
            parameters[name] = _conditional_values(field[name])
    return parameters


def _conditional_values(field: Field) -> tuple[ConditionalValue, ...]:
    if isinstance(field.value, dict):
        return (_conditional_value(field),)
    if isinstance(field.value, list) and any(isinstance(item, dict) for item in field.value):
        return tuple(_conditional_value(item) for item in field.items())
    return (ConditionalValue(_value(field), None),)


def _conditional_value(field: Field) -> ConditionalValue:
    field.require_keys(ConditionalValue._fields)
    value, filter = field["value"], field["filter"]
    if value.value is None:
        raise value.error("missing", "write the number for tensors that match this filter")
    if not isinstance(filter.value, str | None):
        raise filter.error("not text", "write a part of a tensor name, in quotes")
    if filter.value == "*":
        return ConditionalValue(_value(value), None)
    return ConditionalValue(_value(value), filter.value)


def _value(field: Field) -> float | tuple[float, ...]:
    if isinstance(field.value, list):
        return tuple(item.number() for item in field.items())
    return field.number()
