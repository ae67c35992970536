"""Plan the conversion of a checkpoint: its metadata, and the type that each tensor gets. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cerebrum_cli.core.metadata_keys import CONVERTED
from cerebrum_cli.gguf.contents import EMBEDDING, HEAD, Value
from cerebrum_cli.weights.methods import copy_of
from cerebrum_cli.weights.plan import OutputTensor, Plan
from cerebrum_cli.weights.table import Table
from cerebrum_cli.weights.target import CLOSEST, WRITABLE, Target, model_shape

TYPES = tuple(name for name in WRITABLE if name not in CLOSEST)  # those without a better mixture


def plan_conversion(table: Table, type: str, origin: Mapping[str, str]) -> Plan:
    """Plan the conversion of a checkpoint to a type or a mixture, whose metadata states its `origin`."""
    target = Target(type)
    shape = model_shape(table, table.n_layers)
    tensors = []
    for name, tensor in table.tensors.items():
        is_head = name == HEAD or (name == EMBEDDING and HEAD not in table.tensors)
        kind, unfit = target.type_of(name, tensor, is_head, shape)
        tensors.append(OutputTensor(name, tensor.shape, kind, copy_of(tensor), unfit))
    metadata = {**table.metadata, "general.file_type": Value("UINT32", target.file_type(None))}
    for key, text in origin.items():
        metadata[f"{CONVERTED}{key}"] = Value("STRING", text)
    return Plan(metadata, tuple(tensors), ())
