"""What a model's files say of themselves, as values: metadata with its types, and where each tensor's bytes lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.types import TENSOR_TYPES, TensorType

ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT, in bytes
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
# Arrays that may be as long as a model has layers, and are not about layers.
_NOT_PER_LAYER = ("rope.dimension_sections", "rope.scaling.")
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


class Value(NamedTuple):
    """A metadata value with the name GGUF gives its type, as "UINT32"; an array is a tuple, its strings are bytes."""

    type: str
    content: Any
    item_type: str = ""

    @property
    def is_array(self) -> bool:
        """Whether it holds several items."""
        return self.type == "ARRAY"


class Tensor(NamedTuple):
    """A tensor in a file: row length first, as files have it; ggml's number of its type; place and size in bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    path: Path
    offset: int

    @property
    def kind(self) -> TensorType:
        """Its type."""
        return TENSOR_TYPES[self.type]

    @property
    def n_elements(self) -> int:
        """How many weights it has."""
        return prod(self.shape)

    @property
    def size(self) -> int:
        """The bytes it takes."""
        return self.kind.bytes_of(self.n_elements)


def split_layer(name: str) -> tuple[int | None, str]:
    """Return the layer a tensor belongs to, None where it is of no layer, and its name without that."""
    found = _LAYER.fullmatch(name)
    return (int(found[1]), found[2]) if found else (None, name)


@dataclass(frozen=True)
class Table:
    """One model: what the user calls it, its metadata and its tensors, in the order of the file."""

    name: str
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]

    @property
    def array_items(self) -> int:
        """How many items its arrays have, which is what reading its metadata takes time and memory for."""
        return sum(len(value.content) for value in self.metadata.values() if value.is_array)

    @property
    def architecture(self) -> str:
        """The architecture, which its hyperparameters are named by."""
        return str(self.metadata["general.architecture"].content)

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        count = self.hyperparameter("block_count")
        if not isinstance(count, int) or count < 1:
            raise MergeError(f"{self.name}: its file states no number of layers", "merge language models only")
        return count

    @cached_property
    def tensors_by_layer(self) -> Mapping[int | None, Mapping[str, Tensor]]:
        """The tensors of each layer by their names without it, and under None those of no layer."""
        found: dict[int | None, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            layer, suffix = split_layer(name)
            found.setdefault(layer, {})[suffix] = tensor
        return found

    @cached_property
    def global_tensors(self) -> Mapping[str, Tensor]:
        """The tensors of no layer: embeddings, norms, head."""
        return self.tensors_by_layer.get(None, {})

    def layer_tensors(self, index: int) -> Mapping[str, Tensor]:
        """Return the tensors of a layer by their names without it."""
        return self.tensors_by_layer.get(index, {})

    def text(self, key: str) -> str | None:
        """Return a text of the metadata."""
        value = self.metadata.get(key)
        return str(value.content) if value and value.type == "STRING" and value.content else None

    def hyperparameter(self, key: str) -> Any:
        """Return the content of a hyperparameter, None where the file does not say."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value.content if value else None

    def is_per_layer(self, key: str) -> bool:
        """Return whether a key is that of a hyperparameter which has an item for each layer."""
        value, name = self.metadata.get(key), key.removeprefix(f"{self.architecture}.")
        if value is None or not value.is_array or name == key or name.startswith(_NOT_PER_LAYER):
            return False
        return len(value.content) == self.n_layers

    def layer_value(self, key: str, layer: int) -> Any:
        """Return what is said of one layer under a key, None where nothing is. MergeError for an array of no layers."""
        value = self.metadata.get(key)
        if value is None or not value.is_array:
            return value and value.content
        if len(value.content) != self.n_layers:
            what = f"{self.name} has {len(value.content)} items in {key} and {self.n_layers} layers"
            raise MergeError(what, "check where the file came from, or pull it again")
        return value.content[layer]
