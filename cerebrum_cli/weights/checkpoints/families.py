"""Families of models in Hugging Face's layout: what each becomes in a GGUF file, and what its configuration may state.

From transformers 5.24 and llama.cpp 0c1e57098, conversion/ and src/models/.
"""

from __future__ import annotations

from collections.abc import Mapping

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import Texts

# Parts of a layer: their names in GGUF and in a checkpoint. With a `*` there is one tensor for each expert.
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_DENSE = {**_ATTENTION, "ffn_norm": "post_attention_layernorm", **_FEED_FORWARD}
_MIXTRAL = {
    **_ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_down_exps": "block_sparse_moe.experts.*.w2",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3",
}
_QWEN3_MOE = {
    **_ATTENTION,
    **_HEAD_NORMS,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}
_GEMMA3 = {
    **_ATTENTION,
    **_HEAD_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    **_FEED_FORWARD,
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PROJECTIONS = ("attn_q", "attn_k", "attn_v")

# Hyperparameters by their names in GGUF, without the architecture, and in config.json.
HYPERPARAMETERS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}


@frozen
class Family:
    """A class of models, named by the first of `architectures` in config.json, without its ending.

    `architecture` is its name in GGUF, `parts` are those of a layer, and those in `biased` may have biases. With
    `interleaved` heads, the rows of queries and keys are in another order in GGUF. `norm_offset` is added to the
    weights of norms. Keys that config.json lacks have the values in `defaults`; llama.cpp hard-codes those in
    `assumed`.
    """

    architecture: str
    parts: Mapping[str, str]
    defaults: JsonObject
    assumed: JsonObject
    biased: Texts = _PROJECTIONS
    interleaved: bool = False
    norm_offset: float = 0.0


_ASSUMED = {
    "hidden_act": "silu",
    "partial_rotary_factor": 1,
    "truncate": True,
    "use_sliding_window": False,
    "use_bidirectional_attention": False,
}
FAMILIES = {
    "Llama": Family(
        architecture="llama",
        parts=_DENSE,
        assumed=_ASSUMED,
        biased=(*_PROJECTIONS, "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
        interleaved=True,
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    ),
    "Mistral": Family(
        architecture="llama",
        parts=_DENSE,
        assumed=_ASSUMED,
        interleaved=True,
        defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "rms_norm_eps": 1e-6},
    ),
    "Mixtral": Family(
        architecture="llama",
        parts=_MIXTRAL,
        assumed=_ASSUMED,
        interleaved=True,
        defaults={
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "Qwen2": Family(
        architecture="qwen2",
        parts=_DENSE,
        assumed=_ASSUMED,
        defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "rms_norm_eps": 1e-6},
    ),
    "Qwen3": Family(
        architecture="qwen3",
        parts={**_DENSE, **_HEAD_NORMS},
        assumed=_ASSUMED,
        defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "head_dim": 128},
    ),
    "Qwen3Moe": Family(
        architecture="qwen3moe",
        parts=_QWEN3_MOE,
        assumed={**_ASSUMED, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "num_local_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
        },
    ),
    "Gemma3": Family(
        architecture="gemma3",
        parts=_GEMMA3,
        norm_offset=1.0,
        assumed={
            **_ASSUMED,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        defaults={
            "max_position_embeddings": 131072,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,  # the last of as many layers has no window
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
    ),
}
