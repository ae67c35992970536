"""The types of weights that can be written, and which of them a tensor gets. Pure.

A type is that of all weights, or a mixture, or None for each tensor's own.
"""

from __future__ import annotations

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.gguf.contents import FILE_TYPES, TENSOR_TYPES, TYPE_NUMBERS, Tensor
from cerebrum_cli.weights.mixtures import MIXTURES, ModelShape, base_type, mixed_type
from cerebrum_cli.weights.table import Table

# Values of --type: the types llama.cpp can write without an importance matrix, and its mixtures of these.
TYPES = ("F32", "F16", "BF16", "Q8_0", *MIXTURES)
# If a row is not a multiple of the block size, then for the rows where these do not fit either (llama-quant.cpp).
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
LAST_FALLBACK = "F16"
# Small tensors used at full precision, which llama.cpp does not quantize.
_NOT_QUANTIZED = "_norm ffn_gate_inp ssm_conv1d shortconv time_mix_ attn_rel_b position_embd token_types"
NOT_QUANTIZED = tuple(_NOT_QUANTIZED.split())
MIN_HEAD_TYPE = "Q6_K"  # minimum precision of the output head, which matters most and costs little


def type_of(type: str | None, name: str, tensor: Tensor, is_head: bool, model: ModelShape) -> tuple[int, str]:
    """Number of the type that a tensor gets under a name in a model of this shape.

    Also the name of the type that it should have, if its rows are not whole blocks of that.
    """
    is_matrix = len(tensor.shape) > 1 and tensor.name.endswith(".weight")
    if type is None or not is_matrix or any(part in tensor.name for part in NOT_QUANTIZED):
        return tensor.type, ""
    if type in MIXTURES:
        type = mixed_type(type, name, model) if name.startswith("blk.") else base_type(type)
    if is_head and bits_per_weight(type) < bits_per_weight(MIN_HEAD_TYPE):
        type = MIN_HEAD_TYPE
    for used in (type, FALLBACKS.get(type, type)):
        if tensor.shape[0] % TENSOR_TYPES[TYPE_NUMBERS[used]].block_size == 0:
            return TYPE_NUMBERS[used], "" if used == type else type
    return TYPE_NUMBERS[LAST_FALLBACK], type


def file_type_of(type: str) -> int:
    """File type number (llama.cpp's ftype) of a type."""
    [number] = [number for number, name in FILE_TYPES.items() if name == type]
    return number


def model_shape(table: Table, layers: int) -> ModelShape:
    heads, kv_heads = (table.whole_number(f"attention.{key}") or 1 for key in ("head_count", "head_count_kv"))
    return ModelShape(layers, table.whole_number("expert_count"), heads // kv_heads)


def bits_per_weight(name: str) -> float:
    kind = TENSOR_TYPES[TYPE_NUMBERS[name]]
    return kind.block_bytes * 8 / kind.block_size


def parse_type(text: str) -> str:
    """Parse a type name. Raises UsageError if it is not a type that can be written."""
    name = text.upper().replace("-", "_")
    if name in TYPES:
        return name
    hint = f"use one of {', '.join(TYPES)}; without --type each tensor keeps its type"
    raise UsageError(f"--type {text}: unknown weight type", hint)
