"""Choose the type of each tensor of a merge: its own, or the requested one if its shape allows it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.gguf.parser import Tensor
from cerebrum_cli.gguf.types import FILE_TYPES, TENSOR_TYPES

TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
# Values of --type: the types llama.cpp can write without an importance matrix.
WRITABLE = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0"),
    *("Q4_K", "IQ4_NL", "Q4_1", "Q4_0", "Q3_K", "Q2_K"),
)
FLOAT_TYPES = ("F32", "F16", "BF16")
# If a row is not a multiple of the block size, then for the rows where these do not fit either (llama-quant.cpp).
FALLBACKS = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
LAST_FALLBACK = "F16"
# Small tensors used at full precision, which llama.cpp does not quantize.
NOT_QUANTIZED = (
    *("_norm", "ffn_gate_inp", "ssm_conv1d", "shortconv"),
    *("time_mix_", "attn_rel_b", "position_embd", "token_types"),
)
MIN_HEAD_TYPE = "Q6_K"  # minimum precision of the output head, which matters most and costs little
MIXTURES = {"Q2_K": "Q2_K", "Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}  # the closest file types


@dataclass(frozen=True, slots=True)
class Target:
    """Type of all weights, or None for each tensor's own; then `dtype` is that of unquantized tensors.

    `quantization` is that of the sources, for files that do not state it.
    """

    type: str | None = None
    dtype: str | None = None
    quantization: str | None = None

    def type_of(self, tensor: Tensor, is_head: bool) -> int:
        """Type number to write a tensor in."""
        name = tensor.kind.name
        target = self.type or (self.dtype if name in FLOAT_TYPES else None)
        if target is None or not is_quantizable(tensor):
            return tensor.type
        if is_head and bits_per_weight(target) < bits_per_weight(MIN_HEAD_TYPE):
            target = MIN_HEAD_TYPE
        return TYPE_NUMBERS[with_fallback(target, tensor.shape[0])]

    def file_type(self, own: int | None) -> int | None:
        """File type number (llama.cpp's ftype) of the merge, given that of its main source."""
        target = self.type or (self.dtype if own is not None and FILE_TYPES.get(own) in FLOAT_TYPES else None)
        if target is None and own is not None:
            return own
        target = target or self.quantization or ""
        file_type = MIXTURES.get(target, target)
        return next((number for number, name in FILE_TYPES.items() if name == file_type), None)


def is_quantizable(tensor: Tensor) -> bool:
    is_matrix = len(tensor.shape) > 1 and tensor.name.endswith(".weight")
    return is_matrix and not any(part in tensor.name for part in NOT_QUANTIZED)


def bits_per_weight(name: str) -> float:
    kind = TENSOR_TYPES[TYPE_NUMBERS[name]]
    return kind.block_bytes * 8 / kind.block_size


def with_fallback(name: str, row_length: int) -> str:
    """The type, or a fallback if rows of this length are not a multiple of its block size."""
    for each in (name, FALLBACKS.get(name, name)):
        if row_length % TENSOR_TYPES[TYPE_NUMBERS[each]].block_size == 0:
            return each
    return LAST_FALLBACK


def parse_type(text: str) -> str:
    """Parse a type name. Raises UsageError if it is not a type that can be written."""
    name = text.upper().replace("-", "_")
    if name in WRITABLE:
        return name
    is_mixture = name in FILE_TYPES.values() and name.startswith(tuple(MIXTURES))
    problem = "mixture of types, not a weight type" if is_mixture else "unknown weight type"
    hint = f"use one of {', '.join(WRITABLE)}; without --type each tensor keeps its type"
    raise UsageError(f"--type {text}: {problem}", hint)
