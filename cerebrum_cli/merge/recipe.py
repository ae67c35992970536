"""Parse mergekit recipes in YAML; an error names the location in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from cerebrum_cli.merge.document import Field, choices, printable, quoted, read_document, suggestion

Method = Literal["passthrough", "linear", "slerp", "task_arithmetic"]


class ConditionalValue(NamedTuple):
    """A value for tensors with `filter` in their names, or for all; a tuple is a gradient over a slice's layers."""

    value: float | tuple[float, ...]
    filter: str | None


Parameters = Mapping[str, tuple[ConditionalValue, ...]]  # the first entry whose filter matches is used


@dataclass(frozen=True, slots=True)
class SliceSource:
    """Layers of a model: start and end of the range, end not included; None for all layers."""

    model: str
    layer_range: tuple[int, int] | None
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Slice:
    """Layers of the result, computed from equally many of each source; `base_model` defaults to the recipe's."""

    sources: tuple[SliceSource, ...]
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
        named = [source.model for part in self.slices for source in part.sources]
        bases = [*(part.base_model for part in self.slices), self.base_model]
        return tuple(dict.fromkeys([*named, *filter(None, [*bases, self._named_tokenizer])]))

    @property
    def tokenizer_model(self) -> str:
        return self._named_tokenizer or self.base_model or self.models[0]

    @property
    def _named_tokenizer(self) -> str | None:
        return None if self.tokenizer_source in _NO_MODEL else self.tokenizer_source


_METHODS: tuple[Method, ...] = get_args(Method)
_KEYS = (
    *("merge_method", "slices", "models", "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template", "name"),
)
_PARAMETERS = ("weight", "normalize", "t", "scale", "lambda")
# Parameters of other mergekit methods, or of its execution, which published recipes contain without using them.
_UNUSED_PARAMETERS = ("density", "embed_slerp", "epsilon", "gamma", "int8_mask", "rescale")
_DTYPES = {"float32": "F32", "fp32": "F32", "float16": "F16", "fp16": "F16", "bfloat16": "BF16", "bf16": "BF16"}
_NO_MODEL = ("union", "base")  # values of tokenizer_source that are not models


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
    dtypes = [_dtype(root[key]) for key in ("out_dtype", "dtype") if root[key].value is not None]
    return Recipe(
        method=method,
        slices=slices,
        parameters=parameters,
        base_model=base_model,
        dtype=dtypes[0] if dtypes else None,
        tokenizer_source=_tokenizer_source(root),
        name=None if root["name"].value is None else root["name"].text("a name"),
        text=text,
        ignored_keys=tuple(printable(quoted(key)) for key in ignored),
    )


def _method(field: Field) -> Method:
    for method in _METHODS:
        if method == field.value:
            return method
    raise field.error(
        "missing" if field.value is None else f"{quoted(field.value)} is not supported", choices(field.value, _METHODS)
    )


def _slices(root: Field, method: Method, parameters: Parameters, base_model: str | None) -> tuple[Slice, ...]:
    slices, models = root["slices"], root["models"]
    if (slices.value is None) == (models.value is None):
        raise root.error(
            "neither slices nor models are given" if slices.value is None else "both slices and models are given",
            "give slices to merge layers, or models to merge whole models",
        )
    if slices.value is None:  # one slice of all layers, with the base model among its sources
        fields = models.items()
        sources = [_source(field, ("model", "parameters")) for field in fields]
        if base_model is not None and all(source.model != base_model for source in sources):
            sources, fields = [*sources, SliceSource(base_model, None, {})], [*fields, root["base_model"]]
        part = Slice(tuple(sources), {}, base_model)
        _check_method(method, part, parameters, models, fields)
        return (part,)
    return tuple(_slice(field, method, parameters, base_model) for field in slices.items())


def _slice(field: Field, method: Method, shared: Parameters, base_model: str | None) -> Slice:
    field.require_keys(("sources", "parameters", "base_model"))
    fields = field["sources"].items()
    sources = [_source(source_field, ("model", "layer_range", "parameters")) for source_field in fields]
    counts = [source.layer_range[1] - source.layer_range[0] for source in sources if source.layer_range]
    for source_field, count in zip(fields, counts, strict=True):
        if count != counts[0]:
            raise source_field["layer_range"].error(
                f"{count} layers, but the first source has {counts[0]}",
                "use the same number of layers from each source",
            )
    part = Slice(tuple(sources), _parameters(field["parameters"]), _optional_model(field["base_model"]) or base_model)
    _check_method(method, part, shared, field, fields)
    return part


def _source(field: Field, keys: tuple[str, ...]) -> SliceSource:
    field.require_keys(keys)
    layers = _layer_range(field["layer_range"]) if "layer_range" in keys else None
    return SliceSource(_model(field["model"]), layers, _parameters(field["parameters"]))


def _check_method(method: Method, part: Slice, shared: Parameters, field: Field, fields: Sequence[Field]) -> None:
    """Raise UsageError if a slice lacks what the method needs; `fields` are those of its sources."""
    models, base_model = [source.model for source in part.sources], part.base_model
    stated, has_base = {*part.parameters, *shared}, method in ("slerp", "task_arithmetic")
    for is_wrong, problem, hint in (
        (
            method == "passthrough" and len(models) != 1,
            f"passthrough takes one source per slice, not {len(models)}",
            "give each source its own slice, or use another merge_method",
        ),
        (has_base and base_model is None, f"{method} needs a base_model", "make one of the models the base_model"),
        (
            has_base and base_model not in models,
            f"the base_model {quoted(base_model)} is not among the sources",
            "add it, or make one of the sources the base_model",
        ),
        (
            method == "slerp" and (len(models), len(set(models))) != (2, 2),
            f"slerp takes two sources of different models, not {len(models)} of {len(set(models))}",
            f"use two: {quoted(base_model)} and another",
        ),
    ):
        if is_wrong:
            raise field.error(problem, hint)
    if method == "slerp":
        hint = "to the parameters of the slice or the recipe"
        for source, source_field in zip(part.sources, fields, strict=True):
            if "t" in source.parameters:
                raise source_field["parameters"]["t"].error("slerp takes one t for both sources", f"move it {hint}")
        if "t" not in stated:
            raise field.error("slerp needs t, from 0 (base_model) to 1 (the other model)", f"add it {hint}")
    if method in ("linear", "task_arithmetic") and "weight" not in stated:
        for source, source_field in zip(part.sources, fields, strict=True):
            if "weight" not in source.parameters and (method == "linear" or source.model != base_model):
                raise source_field.error(
                    f"{quoted(source.model)} has no weight",
                    "add one to the parameters of each source, or of the recipe",
                )


def _optional_model(field: Field) -> str | None:
    return None if field.value is None else _model(field)


def _model(field: Field) -> str:
    """A model name, also in mergekit's mapping forms: path and revision, possibly within `model`."""
    if isinstance(field.value, dict) and "model" in field.value:
        field.require_keys(("model",))
        return _model(field["model"])
    if isinstance(field.value, dict):
        field.require_keys(("path", "revision"))
        revision = field["revision"]
        return _model(field["path"]) + ("" if revision.value is None else f"@{revision.text('a revision')}")
    name = field.text("a model name")
    if "+" in name and not name.lower().endswith(".gguf"):  # mergekit's `model+lora`
        raise field.error(f"{quoted(name)}: LoRA adapters are not supported", "name a model without a `+`")
    return name


def _layer_range(field: Field) -> tuple[int, int]:
    match field.value:
        case [int(start), int(end)] if bool not in (type(start), type(end)) and 0 <= start < end:
            return start, end
    raise field.error(
        "missing" if field.value is None else "not a range of layers",
        "write [START, END]: the first layer, counted from 0, and the end, which is not included",
    )


def _dtype(field: Field) -> str:
    dtype = _DTYPES.get(field.value.lower().removeprefix("torch.")) if isinstance(field.value, str) else None
    if dtype is None:
        raise field.error(f"{quoted(field.value)} is not a supported dtype", "use float32, float16 or bfloat16")
    return dtype


def _tokenizer_source(root: Field) -> str | None:
    field, source = root["tokenizer"], root["tokenizer_source"]
    if field.value is not None:
        if source.value is not None:
            raise root.error("both tokenizer and tokenizer_source are given", "remove one of them")
        field.require_keys(("source",))
        source = field["source"]
        if source.value is None:
            return "union"  # mergekit's default
    if source.value is None:
        return None
    return next((name for name in _NO_MODEL if name == source.value), None) or _model(source).removeprefix("model:")


def _parameters(field: Field) -> Parameters:
    if field.value is None:
        return {}
    field.require_keys(_PARAMETERS, ignored=_UNUSED_PARAMETERS)
    names = [name for name, value in field.value.items() if name in _PARAMETERS and value is not None]
    return {name: _conditional_values(field[name]) for name in names}


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
    return ConditionalValue(_value(value), None if filter.value == "*" else filter.value)


def _value(field: Field) -> float | tuple[float, ...]:
    return tuple(item.number() for item in field.items()) if isinstance(field.value, list) else field.number()
