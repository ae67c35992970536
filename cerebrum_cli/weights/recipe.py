"""Parse mergekit recipes in YAML; an error names the location in the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.weights.document import Field, choices, quoted, read_document

Method = Literal["passthrough", "linear", "task_arithmetic"]


@frozen
class Source:
    """Layers of a model, from the first to an end that is not included, or all, times a coefficient."""

    model: str
    layer_range: tuple[int, int] | None
    coefficient: float = 1.0


@frozen
class Slice:
    """Layers of the result, each the sum of one layer of each source, whose coefficients add up to 1.

    The first source has the types and the shapes of the result.
    """

    sources: tuple[Source, ...]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(source.model for source in self.sources)


@frozen
class Recipe:
    """A parsed recipe, in which models are the names it uses; `text` is the YAML source.

    The result has the metadata of the `base_model`, and the vocabulary of the `tokenizer_model`.
    """

    method: Method
    slices: tuple[Slice, ...]
    base_model: str
    tokenizer_model: str
    name: str | None
    text: str

    @property
    def models(self) -> tuple[str, ...]:
        names: list[str] = []
        for part in self.slices:
            names += part.models
        return tuple(dict.fromkeys((*names, self.base_model, self.tokenizer_model)))


class _StatedSource(NamedTuple):
    """A source as the recipe states it, and where."""

    field: Field
    model: str
    layer_range: tuple[int, int] | None
    weight: float | None

    @property
    def required_weight(self) -> float:
        if self.weight is None:
            raise self.field.error(f"{quoted(self.model)} has no weight", "add `parameters: {weight: NUMBER}`")
        return self.weight


_METHODS: tuple[Method, ...] = get_args(Method)
# The last two of the keys and of the parameters have no effect: types are chosen by --type.
_KEYS = (
    "merge_method",
    "slices",
    "models",
    "base_model",
    "parameters",
    "tokenizer_source",
    "name",
    "dtype",
    "out_dtype",
)
_PARAMETERS = ("normalize", "int8_mask")
_NO_MODEL = (None, "union", "base")  # values of tokenizer_source that are not models
_SMALLEST_SUM = 1e-9


def parse_recipe(text: str, where: str) -> Recipe:
    """Parse a recipe; `where` is its file name. Raises UsageError, with the location of the problem."""
    root = read_document(where, text)
    root.require_keys(_KEYS)
    method = _method(root["merge_method"])
    _require_default_sum(root["parameters"], method)
    stated_base = None if root["base_model"].missing else _model(root["base_model"])
    slices = _slices(root, method, stated_base)
    base_model = stated_base or slices[0].sources[0].model
    tokenizer = root["tokenizer_source"]
    return Recipe(
        method=method,
        slices=slices,
        base_model=base_model,
        tokenizer_model=base_model if tokenizer.value in _NO_MODEL else _model(tokenizer),
        name=None if root["name"].missing else root["name"].text("a name"),
        text=text,
    )


def _method(field: Field) -> Method:
    for method in _METHODS:
        if method == field.value:
            return method
    raise field.error(field.missing or f"{quoted(field.value)} is not supported", choices(field.value, _METHODS))


def _require_default_sum(field: Field, method: Method) -> None:
    """Raise UsageError for a `normalize` of the recipe that the method does not have by default in mergekit."""
    if field.missing:
        return
    field.require_keys(_PARAMETERS)
    is_divided = method == "linear"
    if field["normalize"].value not in (None, is_divided):
        hint = "remove it: weights are divided by their sum" if is_divided else "remove it, and divide the weights"
        raise field["normalize"].error(f"not supported with {method}", hint)


def _slices(root: Field, method: Method, base_model: str | None) -> tuple[Slice, ...]:
    slices, models = root["slices"], root["models"]
    if slices.missing == models.missing:
        raise root.error("not one of slices and models", "give slices to merge layers, or models to merge whole models")
    if slices.missing:  # one slice of all layers
        sources = [_source(field, method, has_range=False) for field in models.items()]
        if method == "task_arithmetic" and base_model and base_model not in [source.model for source in sources]:
            sources.append(_StatedSource(root["base_model"], base_model, None, None))
        return (_slice(models, method, base_model, sources),)
    found = []
    for field in slices.items():
        field.require_keys(("sources",))
        sources = [_source(each, method, has_range=True) for each in field["sources"].items()]
        found.append(_slice(field, method, base_model, sources))
    return tuple(found)


def _source(field: Field, method: Method, has_range: bool) -> _StatedSource:
    weighted = method != "passthrough"
    field.require_keys(["model", *(["layer_range"] if has_range else []), *(["parameters"] if weighted else [])])
    parameters = field["parameters"]
    if not parameters.missing:
        parameters.require_keys(("weight",))
    weight = parameters["weight"]
    return _StatedSource(
        field,
        _model(field["model"]),
        _layer_range(field["layer_range"]) if has_range else None,
        None if weight.missing else weight.number(),
    )


def _slice(field: Field, method: Method, base_model: str | None, stated: Sequence[_StatedSource]) -> Slice:
    """A slice with the base model first, and the coefficients of mergekit's formulas.

    These are in merge_methods/linear.py and generalized_task_arithmetic.py of mergekit 0.1.5.
    """
    models = [source.model for source in stated]
    if method == "passthrough":
        if len(stated) > 1:
            hint = "give each source its own slice, or use another merge_method"
            raise field.error(f"passthrough takes one source per slice, not {len(stated)}", hint)
        return Slice((Source(models[0], stated[0].layer_range),))
    if method == "task_arithmetic" and base_model is None:
        raise field.error("task_arithmetic needs a base_model", "make one of the models the base_model")
    if base_model is not None and base_model not in models:
        hint = "add it, or make one of the sources the base_model"
        raise field.error(f"the base_model {quoted(base_model)} is not among the sources", hint)
    at = models.index(base_model) if base_model else 0
    base, others = stated[at], [*stated[:at], *stated[at + 1 :]]
    weights = [source.required_weight for source in others]
    if method == "linear":
        total = base.required_weight + sum(weights)
        if abs(total) < _SMALLEST_SUM:
            raise field.error("the weights add up to 0", "change one of them")
        weights = [weight / total for weight in weights]
    coefficients = (1.0 - sum(weights), *weights)
    sources = zip((base, *others), coefficients, strict=True)
    return Slice(tuple(Source(source.model, source.layer_range, coefficient) for source, coefficient in sources))


def _model(field: Field) -> str:
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
