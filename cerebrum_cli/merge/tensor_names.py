"""Hugging Face names of GGUF tensors, which the filters of published recipes match."""

from __future__ import annotations

import re
from collections.abc import Mapping

_BLOCK = re.compile(r"blk\.([0-9]+)\.(.+)")

# Without the suffix `.weight` or `.bias`, which is the same in both.
_GLOBAL: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_PER_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
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
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NORMS_AROUND = {"ffn_norm": "pre_feedforward_layernorm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
# Where an architecture's names differ from Llama's.
_BY_ARCHITECTURE: Mapping[str, Mapping[str, str]] = {
    "gemma2": _NORMS_AROUND,
    "gemma3": _NORMS_AROUND,
    "gemma3n": _NORMS_AROUND,
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "deepseek2": _EXPERTS,
    "glm4moe": _EXPERTS,
    "olmoe": _EXPERTS,
    "qwen2moe": _EXPERTS,
    "qwen3moe": _EXPERTS,
}


def hugging_face_name(name: str, architecture: str = "llama") -> str:
    """Translate a GGUF tensor name to Hugging Face's; an unknown name is unchanged.

    GGUF has one tensor for all experts of a layer, Hugging Face one per expert, so the expert number is left out.
    """
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return name
    if stem in _GLOBAL:
        return f"{_GLOBAL[stem]}.{kind}"
    block, rows = _BLOCK.fullmatch(stem), {**_PER_LAYER, **_BY_ARCHITECTURE.get(architecture, {})}
    if block is None or block[2] not in rows:
        return name
    return f"model.layers.{block[1]}.{rows[block[2]]}.{kind}"
