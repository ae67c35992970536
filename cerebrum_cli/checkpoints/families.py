"""Families of models in Hugging Face's layout, and the hyperparameters that llama.cpp needs of each. Pure.

A configuration that differs from what llama.cpp hard-codes is rejected. From llama.cpp 0c1e57098, conversion/
and src/models/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import truncate
from cerebrum_cli.gguf.parser import Value

# By the first of `architectures` in config.json, without its ending: the architecture in GGUF, and the parts of a
# layer. The rows of queries and keys are in another order in GGUF if they are "permuted".
_FAMILIES = """
Llama    llama     permuted attention dense
Mistral  llama     permuted attention dense
Mixtral  llama     permuted attention experts
SmolLM3  smollm3   permuted attention dense
Granite  granite   permuted attention dense
Qwen2    qwen2     attention dense
Qwen3    qwen3     attention dense head_norms
Qwen3Moe qwen3moe  attention experts head_norms
Gemma2   gemma2    attention dense last_norms
Gemma3   gemma3    attention dense head_norms last_norms
Phi3     phi3      attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down
Olmo2    olmo2     projections gated head_norms last_norms
Olmo3    olmo2     projections gated head_norms last_norms
"""
_PARTS = {
    "permuted": "",
    "attention": "attn_norm projections",
    "projections": "attn_q attn_k attn_v attn_output",
    "dense": "ffn_norm gated",
    "gated": "ffn_gate ffn_up ffn_down",
    "experts": "ffn_norm ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps",
    "head_norms": "attn_q_norm attn_k_norm",
    "last_norms": "post_attention_norm post_ffw_norm",
}
_ENDING = "ForCausalLM"
_MULTIMODAL = {"Gemma3ForConditionalGeneration": "Gemma3"}  # whose language model is converted
# Hyperparameters in GGUF, without the architecture, and in config.json.
_KEYS = """
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
"""
# Of rotary embeddings extended by YaRN.
_YARN_KEYS = """
rope.scaling.yarn_ext_factor   extrapolation_factor
rope.scaling.yarn_beta_fast    beta_fast
rope.scaling.yarn_beta_slow    beta_slow
"""
_FLOATS = ("epsilon", "softcapping", "scale", "factor", "freq_base", "freq_base_swa", "beta_fast", "beta_slow")
_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "olmo2": 4}  # the last layer of each has no window
# Values that published configurations omit.
_DEFAULTS: Mapping[str, JsonObject] = {
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma3": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
    },
    "qwen3moe": {"norm_topk_prob": False},
}
_SCALED = {"gemma2": 46, "gemma3": 62}  # layers of the only size that scales queries by hidden_size / heads
FROM_SOURCE = "convert the unquantized original, or use a GGUF: cerebrum search NAME"
USE_GGUF = "use a GGUF of this model: cerebrum search NAME"


class Family(NamedTuple):
    """The architecture in GGUF, and the tensors of a layer by their names there."""

    architecture: str
    parts: tuple[str, ...]
    permutes: bool


def _expanded(names: list[str]) -> tuple[str, ...]:
    parts = list[str]()
    for name in names:
        inner = _PARTS.get(name)
        parts += [name] if inner is None else _expanded(inner.split())
    return tuple(parts)


FAMILIES = {
    name: Family(architecture, _expanded(parts), "permuted" in parts)
    for name, architecture, *parts in map(str.split, _FAMILIES.strip().splitlines())
}


@frozen
class Configuration:
    """The content of config.json, with defaults; of a multimodal model, the part about the language model."""

    path: Path
    family: Family
    content: JsonObject

    @property
    def n_layers(self) -> int:
        return self.integer("num_hidden_layers")

    def integer(self, key: str) -> int:
        value = self.content.get(key)
        if type(value) is not int or value <= 0:
            raise self.invalid(key)
        return value

    def invalid(self, key: str) -> ModelFileError:
        shown = truncate(ascii(self.content.get(key)), 60)
        return ModelFileError(self.path, f"cannot convert a model with {key} {shown}", USE_GGUF)

    def is_tied(self, has_head: bool) -> bool:
        """Whether the embeddings are also the output matrix; one that is stored may have been trained apart."""
        if has_head:
            return self.family.architecture == "gemma2"  # in GGUF, it has no other
        return bool(self.content.get("tie_word_embeddings", True))

    @property
    def rope(self) -> JsonObject:
        """Parameters of the rotary embedding: of layers without windows, where others have their own."""
        content = self.content
        stated: JsonObject = content.get("rope_parameters") or content.get("rope_scaling") or {}
        full: JsonObject = stated.get("full_attention", stated)
        original = content.get("original_max_position_embeddings") or self.integer("max_position_embeddings")
        return {
            "rope_theta": content.get("rope_theta", 10_000.0),
            "partial_rotary_factor": content.get("partial_rotary_factor", 1.0),
            "original_max_position_embeddings": original,
            "rope_type": full.get("type", "default"),
            **full,
        }

    @property
    def rotated(self) -> int:
        """Number of elements of a head that are rotated."""
        return int(self.rope["partial_rotary_factor"] * self.integer("head_dim"))

    def shape_of(self, part: str) -> tuple[int, int] | None:
        """Length and number of the rows of a matrix by the part of its name; None for other tensors."""
        hidden, head = self.integer("hidden_size"), self.integer("head_dim")
        queries = head * self.integer("num_attention_heads")
        values = head * self.integer("num_key_value_heads")
        inner = self.integer("intermediate_size")
        if part.endswith("_exps") and "moe_intermediate_size" in self.content:
            inner = self.integer("moe_intermediate_size")
        up = 2 * inner if self.family.architecture == "phi3" else inner
        shapes = {
            "attn_q": (hidden, queries),
            "attn_k": (hidden, values),
            "attn_v": (hidden, values),
            "attn_qkv": (hidden, queries + 2 * values),
            "attn_output": (queries, hidden),
            "ffn_gate": (hidden, inner),
            "ffn_up": (hidden, up),
            "ffn_down": (inner, hidden),
        }
        return shapes.get(part.removesuffix("_exps"))

    def metadata(self) -> dict[str, Value]:
        values = self._stated(_KEYS, self.content) | self._rope_values()
        architecture = self.family.architecture
        if architecture in _WINDOW_PERIODS and self.content.get("sliding_window"):
            values["attention.sliding_window"] = self.content["sliding_window"]
            values["attention.sliding_window_pattern"] = self._has_window
        return {f"{architecture}.{key}": self._value(key, value) for key, value in values.items()}

    @staticmethod
    def _stated(keys: str, content: JsonObject) -> JsonDict:
        rows = map(str.split, keys.strip().splitlines())
        return {key: content[name] for key, name in rows if content.get(name) is not None}

    def _value(self, key: str, value: object) -> Value:
        if key == "rope.scaling.type":
            return Value("STRING", value)
        if isinstance(value, tuple):
            return Value("ARRAY", value, "BOOL")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 32:
            raise ModelFileError(self.path, f"cannot convert {key} {truncate(ascii(value), 60)}", USE_GGUF)
        if key.endswith(_FLOATS):
            return Value("FLOAT32", float(value))
        return Value("UINT32", int(value))

    @property
    def _has_window(self) -> tuple[bool, ...]:
        """Whether each layer has a sliding window."""
        if kinds := self.content.get("layer_types"):
            return tuple(kind == "sliding_attention" for kind in kinds)
        period = self.content.get("sliding_window_pattern") or _WINDOW_PERIODS[self.family.architecture]
        return tuple((layer + 1) % period != 0 for layer in range(self.n_layers))

    def _rope_values(self) -> JsonDict:
        rope = self.rope
        values: JsonDict = {"rope.dimension_count": self.rotated, "rope.freq_base": rope["rope_theta"]}
        local = (self.content.get("rope_parameters") or {}).get("sliding_attention", {})
        if (theta := local.get("rope_theta", self.content.get("rope_local_base_freq"))) is not None:
            values["rope.freq_base_swa"] = theta
        if rope["rope_type"] in ("default", "llama3"):  # the factors of the latter are a tensor
            return values
        return values | self._scaling_values(rope)

    def _scaling_values(self, rope: JsonObject) -> JsonDict:
        kind = rope["rope_type"]
        original = rope["original_max_position_embeddings"]
        values: JsonDict = {"rope.scaling.original_context_length": original}
        if kind in ("linear", "yarn"):
            values |= {"rope.scaling.type": kind, "rope.scaling.factor": rope["factor"]}
            values |= self._stated(_YARN_KEYS, rope)
            if kind == "yarn" and rope.get("attention_factor"):  # llama.cpp multiplies its own with what is stored
                values["rope.scaling.attn_factor"] = rope["attention_factor"] / (1 + 0.1 * math.log(rope["factor"]))
        elif "long_factor" in rope and self.family.architecture == "phi3":
            scale = max(1.0, rope.get("factor") or self.integer("max_position_embeddings") / original)
            default = math.sqrt(1 + math.log(scale) / math.log(original))
            values["rope.scaling.attn_factor"] = rope.get("attention_factor") or default
        else:
            raise self.invalid("rope_scaling")
        return values

    def rope_factors(self) -> dict[str, list[float]]:
        """Tensors with divisors of the frequencies of the rotary embedding, by their names."""
        rope = self.rope
        if "long_factor" in rope:
            return {f"rope_factors_{kind}.weight": rope[f"{kind}_factor"] for kind in ("long", "short")}
        if rope["rope_type"] != "llama3":
            return {}
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        factors = []
        rotated = self.rotated
        for index in range(0, rotated, 2):
            wavelength = 2 * math.pi * rope["rope_theta"] ** (index / rotated)
            turns = rope["original_max_position_embeddings"] / wavelength
            smooth = min(1.0, max(0.0, (turns - low) / (high - low)))  # 1 for high frequencies
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
        return {"rope_freqs.weight": factors}


def configuration(path: Path, content: JsonObject) -> Configuration:
    """The configuration in a file. Raises ModelFileError if such a model cannot be converted."""
    architecture = str((content.get("architectures") or [None])[0])
    name = _MULTIMODAL.get(architecture, architecture.removesuffix(_ENDING))
    family = FAMILIES.get(name)
    if family is None or name == architecture:
        raise ModelFileError(path, f"cannot convert {architecture}", f"supported: {', '.join(FAMILIES)}")
    if quantization := content.get("quantization_config"):
        method = quantization.get("quant_method")
        raise ModelFileError(path, f"its weights are already quantized ({method})", FROM_SOURCE)
    whole: JsonDict = {**_DEFAULTS.get(family.architecture, {}), **content, **content.get("text_config", {})}
    if "num_experts" in whole:  # its name in older versions of transformers
        whole["num_local_experts"] = whole["num_experts"]
    checked = Configuration(path, family, whole)
    heads = checked.integer("num_attention_heads")
    whole.setdefault("num_key_value_heads", heads)
    size = checked.integer("hidden_size") // heads
    whole["head_dim"] = whole.get("head_dim") or size
    _require_hyperparameters(checked, size)
    return checked


def _require_hyperparameters(configuration: Configuration, head_size: int) -> None:
    """Raise ModelFileError without one that llama.cpp needs, or with another than it assumes."""
    family, content = configuration.family, configuration.content
    needed = ["rms_norm_eps"]
    if "ffn_gate_exps" in family.parts:
        needed.append("num_experts_per_tok")
    if family.architecture == "granite":
        needed.append("logits_scaling")
    for key in needed:
        if not content.get(key):
            raise configuration.invalid(key)
    for key, value in _required(configuration, head_size).items():
        if content.get(key, value) != value:
            raise configuration.invalid(key)


def _required(configuration: Configuration, head_size: int) -> JsonDict:
    """Values that llama.cpp assumes."""
    common = {"hidden_act": "silu", "use_sliding_window": False}
    match configuration.family.architecture:
        case "smollm3":
            layers = range(configuration.n_layers)
            return {**common, "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in layers]}
        case "qwen3moe":
            return {**common, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
        case "gemma2" | "gemma3" as architecture:
            is_scaled = configuration.n_layers == _SCALED[architecture]
            return {"query_pre_attn_scalar": head_size if is_scaled else configuration.content["head_dim"]}
    return common
