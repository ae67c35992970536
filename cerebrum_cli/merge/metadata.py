"""What a merge says of itself: its sources' metadata where that is still true, and where it comes from. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.table import Table, Value
from cerebrum_cli.merge.compatibility import SAME_SHAPE_HINT
from cerebrum_cli.merge.layer_pattern import tells_windows, window_pattern
from cerebrum_cli.merge.recipe import Recipe
from cerebrum_cli.merge.target_types import Target

HUB = "https://huggingface.co"

# What is said of a source and not of what is made of it.
_NOT_INHERITED = (
    "version organization author basename finetune description quantized_by size_label url doi uuid repo_url"
)
_DROPPED_PREFIXES = ("general.source.", "general.base_model.", "split.", "cerebrum.", "imatrix.", "quantize.imatrix.")
_DROPPED = frozenset(f"general.{key}" for key in (*_NOT_INHERITED.split(), "parameter_count", "alignment"))


class Origin(NamedTuple):
    """What the user calls a source, and its repository on the Hub where it is from there."""

    reference: str
    repo_id: str | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """The name of a merge, its sources by what the recipe calls them, and texts to be kept under keys of ours."""

    name: str
    origins: Mapping[str, Origin]
    extra: Mapping[str, str] = field(default_factory=dict)


class PlannedModel(NamedTuple):
    """What has been planned: the model and layer that each layer is like, and the tensors' names and shapes."""

    layers: Sequence[tuple[Table, int]]
    shapes: Mapping[str, tuple[int, ...]]


def merged_metadata(
    recipe: Recipe, tables: Mapping[str, Table], planned: PlannedModel, target: Target, provenance: Provenance
) -> dict[str, Value]:
    """Return the metadata of a merge; tokenizer and template are those of the recipe's `tokenizer_source`."""
    first = tables[recipe.base_model or recipe.models[0]]
    tokenizer = tables[recipe.tokenizer_model]
    metadata = {key: value for key, value in first.metadata.items() if not key.startswith("tokenizer.")}
    metadata |= {key: value for key, value in tokenizer.metadata.items() if key.startswith("tokenizer.")}
    metadata = {key: value for key, value in metadata.items() if is_inherited(key)}
    metadata |= hyperparameters(first, tables.values(), planned)
    metadata["general.name"] = string_value(provenance.name)
    metadata["general.size_label"] = string_value(size_label(planned.shapes, first.hyperparameter("expert_count") or 0))
    number = target.file_type(dominant_file_type(planned))
    if number is not None:
        metadata["general.file_type"] = Value("UINT32", number)
    licenses = {table.text("general.license") for table in tables.values()}
    if len(licenses) > 1:
        metadata = {key: value for key, value in metadata.items() if not key.startswith("general.license")}
    return metadata | base_models(recipe, tables, provenance)


def is_inherited(key: str) -> bool:
    """Return whether what is said under a key of a source holds for a merge of it."""
    return key not in _DROPPED and not key.startswith(_DROPPED_PREFIXES)


def hyperparameters(first: Table, tables: Iterable[Table], planned: PlannedModel) -> dict[str, Value]:
    """Return the hyperparameters that differ from those of the first model: what is said of layers, and of contexts."""
    prefix = f"{first.architecture}."
    found = {f"{prefix}block_count": Value("UINT32", len(planned.layers))}
    every = list(tables)
    for key in {key: None for table in every for key in table.metadata if key.startswith(prefix)}:
        name = key.removeprefix(prefix)
        values = [table.metadata[key] for table in every if key in table.metadata]
        arrays = [table.metadata[key] for table in every if table.is_per_layer(key)]
        if name == "context_length":
            found[key] = min(values, key=lambda value: value.content)
        elif arrays and not tells_windows(first, name):
            items = tuple(layer_value(table, key, layer) for table, layer in planned.layers)
            found[key] = arrays[0]._replace(content=items)
    return found | window_pattern(first, planned.layers)


def layer_value(table: Table, key: str, layer: int) -> Any:
    """Return what a model says of one layer under a key. MergeError where it says nothing."""
    said = table.layer_value(key, layer)
    if said is None:
        what = f"{table.name} does not say {key}, which another model says of each layer"
        raise MergeError(what, SAME_SHAPE_HINT)
    return said


def dominant_file_type(planned: PlannedModel) -> int | None:
    """Return the file type of the model that most layers are of, None where it states none."""
    counted = Counter(table.name for table, _ in planned.layers)
    table = next(table for table, _ in planned.layers if table.name == counted.most_common(1)[0][0])
    value = table.metadata.get("general.file_type")
    return value.content if value else None


def base_models(recipe: Recipe, tables: Mapping[str, Table], provenance: Provenance) -> dict[str, Value]:
    """Return what says where a merge comes from: its models as GGUF has them, and what is to be kept beside."""
    named: dict[str, str] = {}  # each once, whatever the recipe calls it
    for model in recipe.models:
        named.setdefault(provenance.origins[model].reference, model)
    models = [*named.values()]
    found = {"general.base_model.count": Value("UINT32", len(models))}
    for number, model in enumerate(models):
        key, origin = f"general.base_model.{number}", provenance.origins[model]
        found[f"{key}.name"] = string_value(tables[model].text("general.name") or origin.reference)
        if origin.repo_id:
            found[f"{key}.repo_url"] = string_value(f"{HUB}/{origin.repo_id}")
    return found | {key: string_value(kept) for key, kept in provenance.extra.items()}


def size_label(shapes: Mapping[str, tuple[int, ...]], experts: int) -> str:
    """Return how large a model is as its name would say it: "12B", or "8x7B" of experts."""
    total = sum(map(prod, shapes.values()))
    if not experts:
        return format_count(total)
    in_experts = sum(prod(shape) for name, shape in shapes.items() if "_exps" in name)
    return f"{experts}x{format_count(total - in_experts + in_experts // experts)}"


def format_count(count: int) -> str:
    """Return a number of weights in two digits or more, with its unit."""
    for unit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.{1 if count < 9.95 * unit else 0}f}{letter}"
    return f"{count / 1000:.0f}K"


def string_value(content: str) -> Value:
    """Return a text as a value."""
    return Value("STRING", content)
