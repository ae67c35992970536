"""The types of weights that can be written, and which of them a tensor gets. Pure."""

from __future__ import annotations

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.gguf.contents import FILE_TYPES, TENSOR_TYPES, TYPE_NUMBERS, Tensor
from cerebrum_cli.weights.mixtures import MIXTURES, ModelShape, base_type, mixed_type
from cerebrum_cli.weights.table import Table

# Values of --type: the types llama.cpp can write without an importance matrix, and its mixtures of these.
_WRITABLE = "F32 F16 BF16 Q8_0 Q5_K Q4_K Q3_K"
WRITABLE = (*_WRITABLE.split(), *MIXTURES)
FLOAT_TYPES = ("F32", "F16", "BF16")
# If a row is not a multiple of the block size, then for the rows where these do not fit either (llama-quant.cpp).
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
LAST_FALLBACK = "F16"
# Small tensors used at full precision, which llama.cpp does not quantize.
_NOT_QUANTIZED = "_norm ffn_gate_inp ssm_conv1d shortconv time_mix_ attn_rel_b position_embd token_types"
NOT_QUANTIZED = tuple(_NOT_QUANTIZED.split())
MIN_HEAD_TYPE = "Q6_K"  # minimum precision of the output head, which matters most and costs little
CLOSEST = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}  # file types to the same type everywhere


@frozen
class Target:
    """Type of all weights, or a mixture, or None for each tensor's own; then `dtype` is that of unquantized tensors.

    `quantization` is that of the sources, for files that do not state it.
    """

    type: str | None = None
    dtype: str | None = None
    quantization: str | None = None

    def type_of(self, name: str, tensor: Tensor, is_head: bool, model: ModelShape) -> tuple[int, str]:
        """Number of the type that a tensor has under a name in a model of this shape.

        Also the name of the type that it should have, if its rows are not whole blocks of that.
        """
        target = self._type_of(tensor.kind.name)
        is_matrix = len(tensor.shape) > 1 and tensor.name.endswith(".weight")
        if target is None or not is_matrix or any(part in tensor.name for part in NOT_QUANTIZED):
            return tensor.type, ""
        if target in MIXTURES:
            target = mixed_type(target, name, model) if name.startswith("blk.") else base_type(target)
        if is_head and bits_per_weight(target) < bits_per_weight(MIN_HEAD_TYPE):
            target = MIN_HEAD_TYPE
        for used in (target, FALLBACKS.get(target, target)):
            if tensor.shape[0] % TENSOR_TYPES[TYPE_NUMBERS[used]].block_size == 0:
                return TYPE_NUMBERS[used], "" if used == target else target
        return TYPE_NUMBERS[LAST_FALLBACK], target

    def file_type(self, own: int | None) -> int | None:
        """File type number (llama.cpp's ftype) of the merge, given that of its main source."""
        target = self.type or self.quantization or ""
        if own is not None:
            converted = self._type_of(FILE_TYPES.get(own, ""))
            if converted is None:
                return own
            target = converted
        file_type = CLOSEST.get(target, target)
        return next((number for number, name in FILE_TYPES.items() if name == file_type), None)

    def _type_of(self, own: str) -> str | None:
        """Type that replaces a source's own; None if it stays."""
        if self.type is None and own in FLOAT_TYPES:
            return self.dtype
        return self.type


def model_shape(table: Table, layers: int) -> ModelShape:
    heads, kv_heads = (table.whole_number(f"attention.{key}", 0) or 1 for key in ("head_count", "head_count_kv"))
    return ModelShape(layers, table.whole_number("expert_count") or 0, heads // kv_heads)


def bits_per_weight(name: str) -> float:
    kind = TENSOR_TYPES[TYPE_NUMBERS[name]]
    return kind.block_bytes * 8 / kind.block_size


def parse_type(text: str) -> str:
    """Parse a type name. Raises UsageError if it is not a type that can be written."""
    name = text.upper().replace("-", "_")
    if name in WRITABLE:
        return name
    hint = f"use one of {', '.join(WRITABLE)}; without --type each tensor keeps its type"
    raise UsageError(f"--type {text}: unknown weight type", hint)
