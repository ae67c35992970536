"""Weights in ggml's encodings, to float32 and back, by ggml's own functions.

Nothing is kept between calls, and Python's lock is released in them: threads that have buffers of their own work at the
same time. The tables some IQ types need are made at the first writing, under ggml's lock, and freed by
`llama_backend_free`, which nobody may call meanwhile.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.ctypeslib import ndpointer
from numpy.typing import NDArray

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.llama.devices import bind
from cerebrum_cli.engine.llama.library import llama
from cerebrum_cli.gguf.types import TENSOR_TYPES, TensorType

# ggml ends the process where it has no importance matrix for some of these, and llama.cpp refuses them all without one
# (`tensor_requires_imatrix` in llama-quant.cpp), since what comes out is of no use.
REQUIRES_IMATRIX = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
UNSCALED = frozenset({"F32", "BF16"})
MAX_MAGNITUDE = (
    65504  # of half precision, in which the others have weights or scales; IQ3_S ends the process for infinities
)
MAX_WEIGHTS = 2**31 - 1  # weights in one call: ggml counts those of some types in an int

FLOATS = ndpointer(np.float32, flags="C_CONTIGUOUS")
FLOATS_OUT = ndpointer(np.float32, flags=("C_CONTIGUOUS", "WRITEABLE"))
BYTES_OUT = ndpointer(np.uint8, flags=("C_CONTIGUOUS", "WRITEABLE"))

Reader = Callable[[bytes, NDArray[np.float32], int], object]


class LlamaCodec:
    """What a build of ggml can read and write of `TENSOR_TYPES`; a type is its number."""

    def __init__(self, library: Any = llama._lib) -> None:
        self._readers = {number: found for number in TENSOR_TYPES if (found := find_reader(library, number))}
        self._writable = frozenset(number for number in self._readers if can_write(library, number))
        integers = (ctypes.c_int64,) * 3  # the first weight, rows, row length
        chunk = (ctypes.c_int, FLOATS, BYTES_OUT, *integers, ctypes.c_void_p)
        self._write = bind(library, "ggml_quantize_chunk", ctypes.c_size_t, chunk) if self._writable else None

    def readable(self, type: int) -> bool:
        """Return whether weights of a type can be made floats."""
        return type in self._readers

    def writable(self, type: int) -> bool:
        """Return whether floats can be written as a type, without an importance matrix."""
        return type in self._writable

    def dequantize(self, data: bytes, type: int, out: NDArray[np.float32]) -> None:
        """Fill a C-contiguous array of any shape with the weights some bytes are.

        Raises EngineError for a type that cannot be read, and for more or fewer bytes than the array needs.
        """
        kind, read = TENSOR_TYPES.get(type), self._readers.get(type)
        if kind is None or read is None:
            raise EngineError(f"weights of type {type_name(type)} cannot be read", "take a file in another encoding")
        if out.size > MAX_WEIGHTS or out.size % kind.block_size or len(data) != kind.bytes_of(out.size):
            raise EngineError(
                f"{len(data)} bytes are not {out.size} weights of type {kind.name}",
                "check where the file came from, or pull it again",
            )
        read(data, out, out.size)

    def quantize(self, values: NDArray[np.float32], type: int) -> bytes:
        """Return C-contiguous weights, rows by row length, in a type's bytes.

        Raises EngineError for a type that cannot be written, rows that are not whole blocks of it, and weights it
        cannot hold: only F32 and BF16 go beyond half precision.
        """
        kind = TENSOR_TYPES.get(type)
        if kind is None or self._write is None or not self.writable(type):
            raise EngineError(
                f"weights cannot be written as {type_name(type)}", "choose another encoding, such as Q8_0"
            )
        rows, length = values.shape
        if not 0 < values.size <= MAX_WEIGHTS or length % kind.block_size:
            raise EngineError(
                f"{rows} rows of {length} weights cannot be written as {kind.name}, in blocks of {kind.block_size}",
                "choose an encoding whose blocks fit, such as F16",
            )
        if kind.name not in UNSCALED and not (values.min() >= -MAX_MAGNITUDE and values.max() <= MAX_MAGNITUDE):
            raise EngineError(
                f"weights that are not finite or larger than {MAX_MAGNITUDE} cannot be written as {kind.name}",
                "check the models and numbers they come from",
            )
        written = np.empty(kind.bytes_of(values.size), np.uint8)
        self._write(type, values, written, 0, rows, length, None)
        return written.tobytes()


def type_name(type: int) -> str:
    """Return what a type is called, or its number."""
    return TENSOR_TYPES[type].name if type in TENSOR_TYPES else str(type)


def find_reader(library: Any, number: int) -> Reader | None:
    """Return what makes floats of a type, None where this library does not know it, or knows another by its number."""
    kind = TENSOR_TYPES[number]
    if kind.name == "F32":
        return copy_floats
    others = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
    symbol = others.get(kind.name, f"dequantize_row_{ggml_spelling(kind)}")
    # ggml looks a number up without a check; one whose function is there is within its table. No file has Q8_K.
    if kind.name == "Q8_K" or not hasattr(library, symbol) or ggml_type(library, number) != kind:
        return None
    found: Reader = bind(library, symbol, None, (ctypes.c_char_p, FLOATS_OUT, ctypes.c_int64))
    return found


def can_write(library: Any, number: int) -> bool:
    """Return whether ggml writes a readable type without an importance matrix. It ends the process for all others."""
    kind = TENSOR_TYPES[number]
    symbols = ["ggml_quantize_chunk", "ggml_quantize_requires_imatrix"]
    if kind.block_size > 1:
        symbols.append(f"quantize_{ggml_spelling(kind)}")
    if kind.name in REQUIRES_IMATRIX or not all(hasattr(library, symbol) for symbol in symbols):
        return False
    return not bind(library, "ggml_quantize_requires_imatrix", ctypes.c_bool, (ctypes.c_int,))(number)


def ggml_spelling(kind: TensorType) -> str:
    """Return a type's name as ggml's functions have it: q4_K."""
    return kind.name.lower().replace("_k", "_K")


def ggml_type(library: Any, number: int) -> TensorType:
    """Return what ggml says of a type it knows."""
    name = bind(library, "ggml_type_name", ctypes.c_char_p, (ctypes.c_int,))
    block_size = bind(library, "ggml_blck_size", ctypes.c_int64, (ctypes.c_int,))
    block_bytes = bind(library, "ggml_type_size", ctypes.c_size_t, (ctypes.c_int,))
    return TensorType(name(number).decode().upper(), block_size(number), block_bytes(number))


def copy_floats(data: bytes, out: NDArray[np.float32], _: int) -> None:
    """Fill an array with floats that are floats."""
    np.copyto(out, np.frombuffer(data, np.float32).reshape(out.shape))
