"""Convert weights between ggml's types and float32 with ggml's own functions.

Calls are stateless and release the GIL, so threads with their own buffers run in parallel. ggml creates the tables of
some IQ types at the first quantization, under its own lock; `llama_backend_free` frees them and must not be called
concurrently.

Importing this module loads llama.cpp's library, which copies of weights do not need.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from numpy.ctypeslib import ndpointer
from numpy.typing import NDArray

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.local import native_function
from cerebrum_cli.gguf.contents import TENSOR_TYPES

# Without an importance matrix ggml aborts the process for some of these, and llama.cpp rejects all
# (`tensor_requires_imatrix` in llama-quant.cpp), since the result would be unusable.
REQUIRES_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
UNREADABLE = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")  # of which files hold no weights
UNSCALED = ("F32", "BF16")
MAX_MAGNITUDE = 65504  # of half precision, the type of scales; for infinities IQ3_S aborts the process
MAX_WEIGHTS = 2**31 - 1  # in one call: ggml counts those of some types in an int

FLOATS = ndpointer(np.float32, flags="C_CONTIGUOUS")
FLOATS_OUT = ndpointer(np.float32, flags=("C_CONTIGUOUS", "WRITEABLE"))
BYTES_OUT = ndpointer(np.uint8, flags=("C_CONTIGUOUS", "WRITEABLE"))

Reader = Callable[[bytes, NDArray[np.float32], int], object]


def find_reader(name: str) -> Reader:
    if name == "F32":
        return lambda data, out, _: np.copyto(out, np.frombuffer(data, np.float32).reshape(out.shape))
    symbols = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}
    symbol = symbols.get(name, f"dequantize_row_{name.lower().replace('_k', '_K')}")
    dequantize: Reader = native_function(symbol, None, (ctypes.c_char_p, FLOATS_OUT, ctypes.c_int64))
    return dequantize


READERS = {number: find_reader(kind.name) for number, kind in TENSOR_TYPES.items() if kind.name not in UNREADABLE}
# The integers are the first weight, the number of rows, and the length of a row.
_CHUNK = (ctypes.c_int, FLOATS, BYTES_OUT, *(ctypes.c_int64,) * 3, ctypes.c_void_p)
_WRITE = native_function("ggml_quantize_chunk", ctypes.c_size_t, _CHUNK)


def readable(type: int) -> bool:
    return type in READERS


def writable(type: int) -> bool:
    """Whether weights can be quantized to a type without an importance matrix."""
    return readable(type) and TENSOR_TYPES[type].name not in REQUIRES_IMATRIX


def dequantize(data: bytes, type: int, out: NDArray[np.float32]) -> None:
    """Dequantize bytes into a C-contiguous array of any shape.

    The type is `readable`. Raises EngineError if the number of bytes does not match the array.
    """
    kind = TENSOR_TYPES[type]
    if out.size > MAX_WEIGHTS or out.size % kind.block_size or len(data) != kind.bytes_of(out.size):
        raise EngineError(
            f"{len(data)} bytes are not {out.size} weights of type {kind.name}",
            "download the file again",
        )
    READERS[type](data, out, out.size)


def quantize(values: NDArray[np.float32], type: int) -> bytes:
    """Quantize a C-contiguous array of rows to the bytes of a type.

    The type is `writable`. Raises EngineError for rows that are not whole blocks, and weights out of range: only
    F32 and BF16 exceed half precision.
    """
    kind = TENSOR_TYPES[type]
    rows, length = values.shape
    if not 0 < values.size <= MAX_WEIGHTS or length % kind.block_size:
        raise EngineError(
            f"cannot write {rows} rows of {length} weights as {kind.name}, in blocks of {kind.block_size}",
            "use a type whose blocks fit, such as F16",
        )
    if kind.name not in UNSCALED and not (values.min() >= -MAX_MAGNITUDE and values.max() <= MAX_MAGNITUDE):
        raise EngineError(
            f"cannot write weights that are not finite or exceed {MAX_MAGNITUDE} as {kind.name}",
            "check the source models and the merge parameters",
        )
    data = np.empty(kind.bytes_of(values.size), np.uint8)
    _WRITE(type, values, data, 0, rows, length, None)
    return data.tobytes()
