"""Parse mergekit recipes in YAML: what a recipe states, and what it means for each slice of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.weights.document import printable, read_document

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

    The result has the metadata of the `base_model`, and the vocabulary of the `tokenizer_model`. `file` is its name.
    """

    method: Method
    slices: tuple[Slice, ...]
    base_model: str
    tokenizer_model: str
    name: str | None
    text: str
    file: str

    def invalid(self, problem: str, hint: str) -> UsageError:
        """The error of a recipe that does not fit its models."""
        return UsageError(printable(f"{self.file}: {problem}"), hint)

    @property
    def models(self) -> tuple[str, ...]:
        names: list[str] = []
        for part in self.slices:
            names += part.models
        return tuple(dict.fromkeys((*names, self.base_model, self.tokenizer_model)))


# The keys of a recipe.


@frozen
class _Weight:
    weight: float | None = None


@frozen
class _Source:
    model: str
    layer_range: tuple[int, ...] = ()
    parameters: _Weight = _Weight()

    @property
    def required_weight(self) -> float:
        if self.parameters.weight is None:
            raise UsageError(f"{self.model} has no weight", "add `parameters: {weight: NUMBER}`")
        return self.parameters.weight


@frozen
class _Slice:
    sources: tuple[_Source, ...]


@frozen
class _Parameters:
    """`int8_mask` has no effect in mergekit's methods that are supported."""

    normalize: bool | None = None
    int8_mask: object = None


@frozen
class _Stated:
    """The keys of a recipe; `dtype` and `out_dtype` have no effect: types are chosen by --type."""

    merge_method: Method
    slices: tuple[_Slice, ...] = ()
    models: tuple[_Source, ...] = ()
    base_model: str = ""
    tokenizer_source: str = "base"
    parameters: _Parameters = _Parameters()
    name: str = ""
    dtype: object = None
    out_dtype: object = None


_NO_MODEL = ("union", "base")  # values of tokenizer_source that are not models
_SMALLEST_SUM = 1e-9
_HINT = "give a merge_method, which is passthrough, linear or task_arithmetic, and slices or models"


def parse_recipe(text: str, where: str) -> Recipe:
    """Parse a recipe; `where` is its file name. Raises UsageError."""
    stated = read_document(_Stated, where, text, _HINT)
    try:
        slices = _slices(stated)
        base_model = stated.base_model or slices[0].models[0]
        tokenizer_model = base_model if stated.tokenizer_source in _NO_MODEL else stated.tokenizer_source
        recipe = Recipe(stated.merge_method, slices, base_model, tokenizer_model, stated.name or None, text, where)
        for name in recipe.models:
            _require_model_name(name)
    except UsageError as error:
        raise UsageError(printable(f"{where}: {error.message}"), printable(error.hint)) from error
    return recipe


def _slices(stated: _Stated) -> tuple[Slice, ...]:
    if bool(stated.slices) == bool(stated.models):
        hint = "give slices to merge layers, or models to merge whole models"
        raise UsageError("not one of slices and models", hint)
    is_linear = stated.merge_method == "linear"
    if stated.parameters.normalize not in (None, is_linear):
        hint = "remove it: weights are divided by their sum" if is_linear else "remove it, and divide the weights"
        raise UsageError(f"normalize is not supported with {stated.merge_method}", hint)
    if stated.slices:
        return tuple(_slice(stated, part.sources) for part in stated.slices)
    models = stated.models
    base_model = stated.base_model
    if stated.merge_method == "task_arithmetic" and base_model and base_model not in [each.model for each in models]:
        models = (_Source(base_model), *models)
    return (_slice(stated, models),)


def _slice(stated: _Stated, sources: Sequence[_Source]) -> Slice:
    """A slice with the base model first, and the coefficients of mergekit's formulas.

    These are in merge_methods/linear.py and generalized_task_arithmetic.py of mergekit 0.1.5.
    """
    if stated.merge_method == "passthrough":
        if len(sources) != 1:
            hint = "give each source its own slice, or use another merge_method"
            raise UsageError(f"passthrough takes one source for each slice, not {len(sources)}", hint)
        if sources[0].parameters.weight is not None:
            raise UsageError("passthrough takes no weight", "remove it, or use another merge_method")
        return Slice((_source(stated, sources[0], 1.0),))
    models = [source.model for source in sources]
    base_model = stated.base_model or (models[0] if models and stated.merge_method == "linear" else "")
    if base_model not in models:
        hint = "make one of the models of each slice the base_model"
        raise UsageError(f"{stated.merge_method} needs a base_model among the models", hint)
    at = models.index(base_model)
    others = [*sources[:at], *sources[at + 1 :]]
    weights = [source.required_weight for source in others]
    if stated.merge_method == "linear":
        total = sources[at].required_weight + sum(weights)
        if abs(total) < _SMALLEST_SUM:
            raise UsageError("the weights add up to 0", "change one of them")
        weights = [weight / total for weight in weights]
    parts = zip((sources[at], *others), (1.0 - sum(weights), *weights), strict=True)
    return Slice(tuple(_source(stated, source, coefficient) for source, coefficient in parts))


def _source(stated: _Stated, source: _Source, coefficient: float) -> Source:
    if stated.models and not source.layer_range:
        return Source(source.model, None, coefficient)
    match source.layer_range:
        case (start, end) if stated.slices and 0 <= start < end:
            return Source(source.model, (start, end), coefficient)
    hint = "write [START, END] in slices: the first layer, counted from 0, and the end, which is not included"
    raise UsageError(f"layer_range of {source.model}: {list(source.layer_range)} is not a range of layers", hint)


def _require_model_name(name: str) -> None:
    if not name.strip() or not name.isprintable():
        raise UsageError(f"{name!r} is not a model name", "write it on one line")
    if "+" in name and not name.lower().endswith(".gguf"):  # mergekit's `model+lora`
        raise UsageError(f"{name}: LoRA adapters are not supported", "name a model without a `+`")
