"""Families of models in Hugging Face's layout, and the hyperparameters that llama.cpp needs of each, as tables of data.

From llama.cpp 0c1e57098, conversion/ and src/models/.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import Texts

# By the first of `architectures` in config.json, without its ending: the architecture in GGUF, and the tensors of a
# layer, of which biases may be missing. If "permuted", the rows of queries and keys are in another order in GGUF.
_FAMILIES = """
Llama    llama     permuted attention dense biases
Mistral  llama     permuted attention dense
Mixtral  llama     permuted attention experts
SmolLM3  smollm3   permuted attention dense
Granite  granite   permuted attention dense biases
Qwen2    qwen2     attention dense
Qwen3    qwen3     attention dense head_norms
Qwen3Moe qwen3moe  attention experts head_norms
Gemma2   gemma2    attention dense last_norms
Gemma3   gemma3    attention dense head_norms last_norms
Phi3     phi3      attn_norm.weight attn_qkv.weight attn_output.weight ffn_norm.weight ffn_up.weight ffn_down.weight
Olmo2    olmo2     projections gated head_norms last_norms
Olmo3    olmo2     projections gated head_norms last_norms
"""
_PARTS = {
    "permuted": "",
    "attention": "attn_norm.weight projections",
    "projections": "query_key_value attn_output.weight",
    "query_key_value": "attn_q.weight attn_q.bias attn_k.weight attn_k.bias attn_v.weight attn_v.bias",
    "dense": "ffn_norm.weight gated",
    "gated": "ffn_gate.weight ffn_up.weight ffn_down.weight",
    "biases": "attn_output.bias ffn_gate.bias ffn_up.bias ffn_down.bias",
    "experts": "ffn_norm.weight ffn_gate_inp.weight ffn_gate_exps.weight ffn_up_exps.weight ffn_down_exps.weight",
    "head_norms": "attn_q_norm.weight attn_k_norm.weight",
    "last_norms": "post_attention_norm.weight post_ffw_norm.weight",
}
# Hyperparameters in GGUF, without the architecture, and in config.json.
HYPERPARAMETERS = """
context_length                    max_position_embeddings
embedding_length                  hidden_size
feed_forward_length               intermediate_size
block_count                       num_hidden_layers
vocab_size                        vocab_size
attention.head_count              num_attention_heads
attention.head_count_kv           num_key_value_heads
attention.key_length              head_dim
attention.value_length            head_dim
attention.layer_norm_rms_epsilon  rms_norm_eps
expert_count                      num_local_experts
expert_used_count                 num_experts_per_tok
expert_feed_forward_length        moe_intermediate_size
attn_logit_softcapping            attn_logit_softcapping
final_logit_softcapping           final_logit_softcapping
attention.scale                   attention_multiplier
embedding_scale                   embedding_multiplier
residual_scale                    residual_multiplier
logit_scale                       logits_scaling
rope.freq_base                    rope_theta
rope.freq_base_swa                rope_local_base_freq
rope.scaling.yarn_beta_fast       beta_fast
rope.scaling.yarn_beta_slow       beta_slow
"""
# Values that llama.cpp assumes, by architecture; null allows any, and 0, false and null are the same.
ASSUMED = """
all      {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh", "partial_rotary_factor": 1, "truncate": true}
all      {"use_sliding_window": false, "use_bidirectional_attention": false}
gemma2   {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true}
gemma3   {"hidden_act": "gelu_pytorch_tanh"}
phi3     {"partial_rotary_factor": null}
qwen3moe {"norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": []}
smollm3  {"no_rope_layer_interval": 4}
"""
# Values that transformers 5.24 assumes where config.json has no such key. Of as many layers as in a
# `sliding_window_pattern`, the last has no window.
DEFAULTS = """
all      {"rope_theta": 10000, "partial_rotary_factor": 1}
Llama    {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
Mistral  {"max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-6}
Mixtral  {"max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2}
SmolLM3  {"max_position_embeddings": 32768, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 2e6}
Granite  {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "attention_multiplier": 1, "embedding_multiplier": 1, "residual_multiplier": 1, "logits_scaling": 1}
Qwen2    {"max_position_embeddings": 32768, "num_key_value_heads": 32, "rms_norm_eps": 1e-6}
Qwen3    {"max_position_embeddings": 32768, "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "head_dim": 128}
Qwen3Moe {"max_position_embeddings": 32768, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "num_local_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": false}
Gemma2   {"max_position_embeddings": 8192, "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 2, "attn_logit_softcapping": 50, "final_logit_softcapping": 30}
Gemma3   {"max_position_embeddings": 131072, "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
Phi3     {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
Olmo2    {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
Olmo3    {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096, "sliding_window_pattern": 4}
"""  # noqa: E501
# Values that must not be 0 or null, for which llama.cpp has others, or fails; 1 stands for any.
NOT_ZERO = """
all      {"rms_norm_eps": 1, "num_experts_per_tok": 1}
gemma2   {"attn_logit_softcapping": 1, "final_logit_softcapping": 1}
granite  {"attention_multiplier": 1, "embedding_multiplier": 1, "residual_multiplier": 1, "logits_scaling": 1}
"""


class Family(NamedTuple):
    """The architecture in GGUF, and the tensors of a layer by their names there."""

    architecture: str
    parts: Texts
    permutes: bool


def _expanded(names: list[str]) -> Texts:
    parts = list[str]()
    for name in names:
        inner = _PARTS.get(name)
        parts += [name] if inner is None else _expanded(inner.split())
    return tuple(parts)


def values_of(table: str, name: str) -> JsonDict:
    """The values in the rows of all, and then of a name."""
    values: JsonDict = {}
    for row in table.strip().splitlines():
        key, content = row.split(maxsplit=1)
        if key in ("all", name):
            values |= json.loads(content)
    return values


FAMILIES = {
    name: Family(architecture, _expanded(parts), "permuted" in parts)
    for name, architecture, *parts in map(str.split, _FAMILIES.strip().splitlines())
}
