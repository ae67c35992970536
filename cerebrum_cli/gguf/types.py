"""Tables: tensor and file types of ggml."""

from __future__ import annotations

from typing import NamedTuple


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
