"""Changes by llama.cpp's converter: names of tensors, norms stored as w + 1, and RoPE factors stored as tensors."""

from __future__ import annotations

from cerebrum_cli.core.text import Texts
from cerebrum_cli.weights.table import split_layer

# Names in GGUF and in Hugging Face files, without the suffix `.weight` or `.bias` where it is the same in both.
_GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Several names where one tensor stands for several or for a part of one, or where names differ between releases.
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.kv_b_proj",
    "attn_v_b": "self_attn.kv_b_proj",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_exps": "mlp.experts.gate_proj mlp.experts.gate_up_proj",
    "ffn_up_exps": "mlp.experts.up_proj mlp.experts.gate_up_proj",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj mlp.experts.gate_proj mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj mlp.shared_expert.down_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NORMS_AROUND = {"ffn_norm": "pre_feedforward_layernorm"}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate mlp.gate",
    "exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias mlp.gate.e_score_correction_bias",
    "ffn_gate_exps": f"block_sparse_moe.experts.w1 {_PER_LAYER['ffn_gate_exps']}",
    "ffn_down_exps": f"block_sparse_moe.experts.w2 {_PER_LAYER['ffn_down_exps']}",
    "ffn_up_exps": f"block_sparse_moe.experts.w3 {_PER_LAYER['ffn_up_exps']}",
}
# Where an architecture's names differ.
_BY_ARCHITECTURE = {
    "gemma2": _NORMS_AROUND,
    "gemma3": _NORMS_AROUND,
    "gemma3n": _NORMS_AROUND,
    "gpt-oss": {
        "ffn_gate_inp": "mlp.router",
        "ffn_gate_exps.bias": "mlp.experts.gate_up_proj_bias",
        "ffn_up_exps.bias": "mlp.experts.gate_up_proj_bias",
        "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    },
    "llama": _MIXTRAL,  # the architecture of Mixtral in GGUF
    "minimax-m2": _MIXTRAL,
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "phimoe": _MIXTRAL,
}

# Architectures whose norms multiply by w + 1; llama.cpp's converter adds the 1 (llama.cpp 0c1e57098, conversion/).
_PLUS_ONE = "gemma gemma2 gemma3 gemma-embedding minimax-m3 nemotron qwen3next qwen35 qwen35moe step35"
_NORMS_PLUS_ONE = tuple(_PLUS_ONE.split())
# Factors of RoPE, which follow from the configuration and are not weights.
CONSTANTS = frozenset(("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"))


def hugging_face_names(name: str, architecture: str) -> Texts:
    """Translate a GGUF tensor name to Hugging Face's, which the filters of recipes match; keep an unknown name.

    GGUF has one tensor for all experts of a layer, Hugging Face may have one per expert: the expert number is left out.
    """
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return (name,)
    if stem in _GLOBAL:
        return (f"{_GLOBAL[stem]}.{kind}",)
    layer, part = split_layer(stem)
    if layer is None:
        return (name,)
    rows = {**_PER_LAYER, **_BY_ARCHITECTURE.get(architecture, {})}
    translated = rows.get(f"{part}.{kind}", "").split()
    if not translated:
        translated = [f"{own_name}.{kind}" for own_name in rows.get(part, "").split()]
    return tuple(f"model.layers.{layer}.{own_name}" for own_name in translated) or (name,)


def stored_offset(name: str, architecture: str) -> float:
    """Constant that the converter adds to a tensor's weights."""
    is_norm = name.endswith("norm.weight") and not name.endswith(".ssm_norm.weight")
    return float(is_norm and architecture in _NORMS_PLUS_ONE)
