"""What a GGUF file contains: metadata values, and tensors with their ggml types."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.files import Paths

Scalar = str | int | float | bool

VOCABULARY = "tokenizer.ggml."  # how the keys of a vocabulary begin
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
STRING, ARRAY = 8, 9

# By the number of a GGUF value type: its name, and that of an array's items.
_VALUE_TYPES = "UINT8 INT8 UINT16 INT16 UINT32 INT32 FLOAT32 BOOL STRING ARRAY UINT64 INT64 FLOAT64"
VALUE_TYPES = tuple(_VALUE_TYPES.split())
_ITEM_TYPES = "u8 i8 u16 i16 u32 i32 f32 bool string array u64 i64 f64"
ITEM_TYPES = tuple(_ITEM_TYPES.split())
# Of the types other than string and array: the layout as in the `struct` module.
LAYOUTS = dict(enumerate("BbHhIif?")) | dict(enumerate("Qqd", 10))

MAX_TENSORS = 1 << 17  # far above known models: per-expert layouts have a few thousand
ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT, in bytes


class TensorType(NamedTuple):
    """A ggml type: `block_bytes` bytes hold `block_size` weights of a row."""

    name: str
    block_size: int
    block_bytes: int

    def bytes_of(self, weights: int) -> int:
        """Size in bytes of this many weights, a multiple of the block size."""
        return weights // self.block_size * self.block_bytes


# Source: `enum ggml_type` in ggml.h and the block structs in ggml-common.h (llama.cpp 0c1e57098); gaps: removed types.
_TENSOR_TYPES = """
 0  F32        1    4
 1  F16        1    2
 2  Q4_0      32   18
 3  Q4_1      32   20
 6  Q5_0      32   22
 7  Q5_1      32   24
 8  Q8_0      32   34
 9  Q8_1      32   36
10  Q2_K     256   84
11  Q3_K     256  110
12  Q4_K     256  144
13  Q5_K     256  176
14  Q6_K     256  210
15  Q8_K     256  292
16  IQ2_XXS  256   66
17  IQ2_XS   256   74
18  IQ3_XXS  256   98
19  IQ1_S    256   50
20  IQ4_NL    32   18
21  IQ3_S    256  110
22  IQ2_S    256   82
23  IQ4_XS   256  136
24  I8         1    1
25  I16        1    2
26  I32        1    4
27  I64        1    8
28  F64        1    8
29  IQ1_M    256   56
30  BF16       1    2
34  TQ1_0    256   54
35  TQ2_0    256   66
39  MXFP4     32   17
40  NVFP4     64   36
41  Q1_0     128   18
42  Q2_0      64   18
"""


TENSOR_TYPES = {
    int(number): TensorType(name, int(block_size), int(block_bytes))
    for number, name, block_size, block_bytes in map(str.split, _TENSOR_TYPES.strip().splitlines())
}

TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}

# Source: `enum llama_ftype` in llama.h, without its MOSTLY_ prefix, as in file names, in runs without a gap.
FILE_TYPES = {
    number: name
    for first, names in (
        (0, "F32 F16 Q4_0 Q4_1"),
        (7, "Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS"),
        (23, "IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16"),
        (36, "TQ1_0 TQ2_0 MXFP4_MOE NVFP4 Q1_0 Q2_0"),
    )
    for number, name in enumerate(names.split(), first)
}


class Array(NamedTuple):
    """Type and length of a metadata array, with the values of a short array of numbers."""

    item_type: str
    length: int
    values: tuple[int | float | bool, ...] = ()


class Value(NamedTuple):
    """A metadata value with the GGUF name of its type, such as "UINT32".

    An array is an Array. If it was read whole, it is a tuple, and its strings are bytes.
    """

    type: str
    content: Any
    item_type: str = ""


class HeaderTruncated(ModelFileError):
    """The buffer ends before the header does."""


Metadata = Mapping[str, Scalar | Array]
Values = Mapping[str, Value]
Shape = tuple[int, ...]  # of a tensor, row length first
ReadBytes = Callable[[Path, int, int], bytes]  # reads from a file, at an offset, a number of bytes


class TensorSource(Protocol):
    """How the bytes of a tensor come from others; it is hashable."""

    @property
    def paths(self) -> Paths:
        """The files that are read."""

    def read(self, read: ReadBytes, begin: int, size: int) -> bytes:
        """Bytes of the tensor from `begin` on."""


class Tensor(NamedTuple):
    """A tensor in a file: its shape; ggml type number; file and offset in bytes.

    With a `source`, its bytes are computed, and the offset counts in these.
    """

    name: str
    shape: Shape
    type: int
    path: Path
    offset: int
    source: TensorSource | None = None

    @property
    def kind(self) -> TensorType:
        """Its type; an unknown one has a size of 0."""
        return TENSOR_TYPES.get(self.type) or TensorType(f"type {self.type}", 1, 0)

    @property
    def size(self) -> int:
        return self.kind.bytes_of(math.prod(self.shape))


Tensors = Mapping[str, Tensor]


class Tables(NamedTuple):
    """Parts of a header; its `length` is in bytes, without the padding before the tensors' data at `data_start`.

    `metadata` are the contents of `values`. Offsets of tensors count from the start of the data. `vocabulary` is where
    the values of the vocabulary begin and end in the file.
    """

    metadata: Metadata
    values: Values
    vocabulary: tuple[int, int]
    tensors: list[Tensor]
    length: int
    data_start: int


def quoted(text: str) -> str:
    """Text from the file, quoted, shortened and safe to print."""
    if len(text) > 80:
        text = f"{text[:80]}..."
    return ascii(text)


def aligned(position: int, alignment: int = ALIGNMENT) -> int:
    """Round a position or size up to the alignment."""
    return -(-position // alignment) * alignment
