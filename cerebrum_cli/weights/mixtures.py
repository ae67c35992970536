"""Types of the tensors in llama.cpp's mixtures of types, such as Q4_K_M. Pure.

The rules are those of `llama_tensor_get_type_impl` in llama-quant.cpp (llama.cpp 0c1e57098) without an importance
matrix, but for its exceptions by the size of a model.
"""

from __future__ import annotations

from typing import NamedTuple

from cerebrum_cli.gguf.contents import TYPE_NUMBERS

# Mixture; part of a layer; layers (N: the first N, 1/N: the first 1/N, "more": the spread of _holds, or all; "grouped":
# all, if as many query heads share keys as GROUPED says); type. The first matching row applies. All other tensors have
# the type in the mixture's name.
_RULES = """
Q2_K    attn_output  all      Q3_K
Q2_K    attn_v       grouped  Q4_K
Q2_K    attn_v       all      Q3_K
Q2_K    ffn_down     all      Q3_K
Q3_K_M  attn_output  all      Q4_K
Q3_K_M  attn_v       2        Q5_K
Q3_K_M  attn_v       all      Q4_K
Q3_K_M  ffn_down     1/16     Q5_K
Q3_K_M  ffn_down     all      Q4_K
Q3_K_L  attn_output  all      Q5_K
Q3_K_L  attn_v       all      Q5_K
Q3_K_L  ffn_down     all      Q5_K
Q4_K_S  attn_v       4        Q5_K
Q4_K_S  ffn_down     1/8      Q5_K
Q4_K_M  attn_v       more     Q6_K
Q4_K_M  ffn_down     more     Q6_K
Q5_K_M  attn_v       more     Q6_K
Q5_K_M  ffn_down     more     Q6_K
IQ4_NL  attn_v       grouped  Q5_K
IQ4_NL  ffn_down     1/8      Q5_K
"""
RULES = tuple(tuple(row.split()) for row in _RULES.strip().splitlines())
_MIXTURES = "Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ4_NL"
MIXTURES = tuple(_MIXTURES.split())
GROUPED = 4  # query heads for each head of keys and values
_MANY_EXPERTS = 8  # with this many, attention is a small part of a model
_OUTPUT_IN_Q5_K = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL")  # of attention, with many experts


class ModelShape(NamedTuple):
    """Numbers of layers, of experts, and of query heads for each head of keys and values."""

    layers: int
    experts: int
    grouped: int


def base_type(mixture: str) -> str:
    """The type in the name of a mixture."""
    return mixture if mixture in TYPE_NUMBERS else mixture[:4]


def mixed_type(mixture: str, name: str, shape: ModelShape) -> str:
    """The type of a tensor of a layer in a mixture."""
    _, number, part, _ = name.split(".")
    if shape.experts == _MANY_EXPERTS:
        if part in ("attn_k", "attn_v"):
            return "Q8_0"
        if part == "attn_output":
            return "Q5_K" if mixture in _OUTPUT_IN_Q5_K else base_type(mixture)
    part = part.replace("attn_qkv", "attn_v").removesuffix("_exps")
    for rule_mixture, rule_part, layers, kind in RULES:
        if (rule_mixture, rule_part) == (mixture, part) and _holds(layers, int(number), shape):
            return kind
    return base_type(mixture)


def _holds(layers: str, number: int, shape: ModelShape) -> bool:
    count = shape.layers
    if layers == "all":
        return True
    if layers == "grouped":
        return shape.grouped >= GROUPED
    if layers == "more":
        eighth = count // 8
        return number < eighth or number >= 7 * count // 8 or (number - eighth) % 3 == 2
    share = layers.removeprefix("1/")
    return number < (int(share) if share == layers else count // int(share))
