"""A planned file: its metadata, and each tensor as a copy or a sum of tensors in other files. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.metadata_keys import CONVERTED
from cerebrum_cli.core.text import format_count
from cerebrum_cli.gguf.contents import EMBEDDING, HEAD, TENSOR_TYPES, Shape, Tensor, TensorType, Value, aligned
from cerebrum_cli.gguf.header import Header, header_from_tables, parse_tables
from cerebrum_cli.weights.mixtures import ModelShape
from cerebrum_cli.weights.table import Table, encode_header
from cerebrum_cli.weights.target import file_type_of, model_shape, type_of

Metadata = dict[str, Value]

_TOLERANCE = 1e-9  # rounding errors of a sum of coefficients stay below this


class Term(NamedTuple):
    tensor: Tensor
    coefficient: float


@frozen
class Sum:
    """A weighted sum of tensors of the same shape, whose coefficients add up to 1."""

    terms: tuple[Term, ...]


class OutputTensor(NamedTuple):
    """A tensor of the file: its shape, its ggml type number, and the tensor that it copies, or the sum that it is.

    `unfit` is the name of the type that it should have, if its rows are not whole blocks of that.
    """

    name: str
    shape: Shape
    type: int
    origin: Tensor | Sum
    unfit: str = ""

    @property
    def kind(self) -> TensorType:
        return TENSOR_TYPES[self.type]

    @property
    def size(self) -> int:
        return self.kind.bytes_of(prod(self.shape))

    @property
    def is_copy(self) -> bool:
        return isinstance(self.origin, Tensor)

    @property
    def inputs(self) -> Sequence[Tensor]:
        if isinstance(self.origin, Sum):
            return [term.tensor for term in self.origin.terms]
        return [self.origin]


@dataclass(frozen=True)
class Plan:
    """A planned file: metadata, and tensors in file order."""

    metadata: Metadata
    tensors: Sequence[OutputTensor]

    @cached_property
    def header(self) -> bytes:
        return encode_header(self.metadata, (tensor[:3] for tensor in self.tensors))

    @property
    def size(self) -> int:
        return len(self.header) + sum(aligned(tensor.size) for tensor in self.tensors)

    def unfit_notice(self, type: str | None) -> NoticeEvent | None:
        """Which tensors have other types, as their rows are not whole blocks of a requested one; None if all fit."""
        counts = Counter((tensor.unfit, tensor.kind.name) for tensor in self.tensors if tensor.unfit)
        if not counts:
            return None
        tensors = format_count(counts.total(), "tensor")
        problem = (
            f"{tensors} cannot be quantized as {type} prescribes: the row length is not divisible by the block size"
        )
        used = [f"{used} instead of {unfit} ({count})" for (unfit, used), count in counts.items()]
        return NoticeEvent(problem, f"other types are used: {', '.join(used)}")

    def header_at(self, path: Path) -> Header:
        """The header of the planned file, as it will be read from a path."""
        return header_from_tables(path, parse_tables(path, self.header, self.size))


def plan_tensors(sums: Mapping[str, Sequence[Term]], type: str | None, shape: ModelShape) -> list[OutputTensor]:
    """Choose the types of tensors, given what each is the sum of; without a `type`, that of its first term."""
    outputs = []
    for name, terms in sums.items():
        first = terms[0].tensor
        is_head = name == HEAD or (name == EMBEDDING and HEAD not in sums)
        number, unfit = type_of(type, name, first, is_head, shape)
        outputs.append(OutputTensor(name, first.shape, number, _origin(terms, number), unfit))
    return outputs


def _origin(terms: Iterable[Term], type: int) -> Tensor | Sum:
    """The sum of the terms with each tensor once; the tensor itself if it is the only one, and already of the type."""
    coefficients = defaultdict[Tensor, float](float)
    for tensor, coefficient in terms:
        coefficients[tensor] += coefficient
    used = [Term(tensor, coefficient) for tensor, coefficient in coefficients.items() if abs(coefficient) > _TOLERANCE]
    if len(used) == 1 and used[0].tensor.type == type:
        return used[0].tensor
    return Sum(tuple(used))


def plan_conversion(table: Table, type: str, origin: Mapping[str, str]) -> Plan:
    """Plan the conversion of a checkpoint to a type or a mixture, whose metadata states its `origin`."""
    sums = {name: [Term(tensor, 1.0)] for name, tensor in table.tensors.items()}
    metadata = {**table.metadata, "general.file_type": Value("UINT32", file_type_of(type))}
    for key, text in origin.items():
        metadata[f"{CONVERTED}{key}"] = Value("STRING", text)
    return Plan(metadata, plan_tensors(sums, type, model_shape(table, table.n_layers)))
