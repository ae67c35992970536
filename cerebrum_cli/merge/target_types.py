"""In which types the tensors of a merge are written: their own, or a wanted one where a tensor can have it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.gguf.table import Tensor
from cerebrum_cli.gguf.types import FILE_TYPES, TENSOR_TYPES

TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
# What can be asked for: the types llama.cpp writes without being told which weights matter.
WRITABLE = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K",
    "Q5_1",
    "Q5_0",
    "Q4_K",
    "IQ4_NL",
    "Q4_1",
    "Q4_0",
    "Q3_K",
    "Q2_K",
)
FLOAT_TYPES = ("F32", "F16", "BF16")
# For rows that are no whole blocks, and where those are not either, as llama.cpp does it (llama-quant.cpp).
FALLBACKS = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
LAST_FALLBACK = "F16"
# Small, and read at full precision: llama.cpp quantises none of these.
NOT_QUANTIZED = (
    "_norm",
    "ffn_gate_inp",
    "ssm_conv1d",
    "shortconv",
    "time_mix_",
    "attn_rel_b",
    "position_embd",
    "token_types",
)
MIN_HEAD_TYPE = "Q6_K"  # what a head is written as at least: it says the tokens, and costs little
MIXTURES = {"Q2_K": "Q2_K", "Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}  # the mixtures most like them


@dataclass(frozen=True, slots=True)
class Target:
    """The type that is wanted of all weights, None for each tensor's own; `dtype` is that of unquantised ones then.

    `quantization` is what sources are known to be whose files do not say it.
    """

    type: str | None = None
    dtype: str | None = None
    quantization: str | None = None

    def type_of(self, tensor: Tensor, is_head: bool) -> int:
        """Return ggml's number of the type of what becomes of a tensor."""
        name = tensor.kind.name
        wanted = self.type or (self.dtype if name in FLOAT_TYPES else None)
        if wanted is None or not is_quantized(tensor):
            return tensor.type
        if is_head and bits_per_weight(wanted) < bits_per_weight(MIN_HEAD_TYPE):
            wanted = MIN_HEAD_TYPE
        return TYPE_NUMBERS[with_fallback(wanted, tensor.shape[0])]

    def file_type(self, own: int | None) -> int | None:
        """Return llama.cpp's number of what most of a file is, given that of the model it is made of."""
        wanted = self.type or (self.dtype if own is not None and FILE_TYPES.get(own) in FLOAT_TYPES else None)
        if wanted is None and own is not None:
            return own
        wanted = wanted or self.quantization or ""
        word = MIXTURES.get(wanted, wanted)
        return next((number for number, name in FILE_TYPES.items() if name == word), None)


def is_quantized(tensor: Tensor) -> bool:
    """Return whether a tensor is one of those that are quantised."""
    return (
        len(tensor.shape) > 1
        and tensor.name.endswith(".weight")
        and not any(part in tensor.name for part in NOT_QUANTIZED)
    )


def bits_per_weight(name: str) -> float:
    """Return the bits a weight takes in a type."""
    kind = TENSOR_TYPES[TYPE_NUMBERS[name]]
    return kind.block_bytes * 8 / kind.block_size


def with_fallback(name: str, row: int) -> str:
    """Return a type, or another one where rows of so many weights are not whole blocks of it."""
    for each in (name, FALLBACKS.get(name, name)):
        if row % TENSOR_TYPES[TYPE_NUMBERS[each]].block_size == 0:
            return each
    return LAST_FALLBACK


def parse_type(text: str) -> str:
    """Return the type of this name. UsageError where there is none that can be written."""
    name = text.upper().replace("-", "_")
    if name in WRITABLE:
        return name
    mixture = name in FILE_TYPES.values() and name.startswith(tuple(MIXTURES))
    what = "is a mixture of types" if mixture else "is no type weights can be written in"
    do = f"name one of {', '.join(WRITABLE)}, or leave --type out: each tensor keeps its own then"
    raise UsageError(f"--type {text} {what}", do)
