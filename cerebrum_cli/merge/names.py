"""What Hugging Face calls the tensors of a GGUF file: the names that the filters of published recipes mean."""

from __future__ import annotations

import re
from collections.abc import Mapping

_BLOCK = re.compile(r"blk\.([0-9]+)\.(.+)")

# Each without `.weight` or `.bias`, which stay as they are.
_OUTSIDE: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_A_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.w1",
    "ffn_down_exps": "block_sparse_moe.experts.w2",
    "ffn_up_exps": "block_sparse_moe.experts.w3",
}


def hugging_face_name(name: str) -> str:
    """Return what Hugging Face calls a tensor of a GGUF file; one it has no row for keeps its name.

    The experts of a layer are one tensor in GGUF and one each at Hugging Face, so theirs is the name without a number.
    """
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return name
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    block = _BLOCK.fullmatch(stem)
    if block is None or block[2] not in _IN_A_LAYER:
        return name
    return f"model.layers.{block[1]}.{_IN_A_LAYER[block[2]]}.{kind}"
