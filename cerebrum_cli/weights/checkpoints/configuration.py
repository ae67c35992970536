"""The configuration of a checkpoint, and what it becomes in a GGUF file. Pure.

A configuration that differs from what llama.cpp hard-codes is rejected.
"""

from __future__ import annotations

import math
from pathlib import Path

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import truncate
from cerebrum_cli.gguf.contents import Shape, Value
from cerebrum_cli.gguf.header import MAX_LAYERS
from cerebrum_cli.weights.checkpoints.families import FAMILIES, HYPERPARAMETERS, Family

_ENDING = "ForCausalLM"
_MULTIMODAL = {"Gemma3ForConditionalGeneration": "Gemma3"}  # whose language model is converted
_FLOATS = ("epsilon", "factor", "freq_base", "freq_base_swa", "beta_fast", "beta_slow")
_NORMS = ("attn_norm", "ffn_norm", "output_norm", "post_attention_norm", "post_ffw_norm")
_GEMMA3_27B_LAYERS = 62  # of the only size whose queries llama.cpp scales by hidden_size / heads, not by head_dim
# The largest values that are read, lest a wrong one take all memory: those of llama.cpp, or far above known models'.
_LARGEST = {"num_hidden_layers": MAX_LAYERS, "num_local_experts": 1024, "head_dim": 1 << 13, "vocab_size": 1 << 20}
OWN_CONFIGURATION = "use the config.json that was published with these weights"
FROM_SOURCE = "convert the unquantized original, or use a GGUF: cerebrum search NAME"
USE_GGUF = "use a GGUF of this model: cerebrum search NAME"


@frozen
class Configuration:
    """The content of config.json, with defaults; of a multimodal model, the part about the language model."""

    path: Path
    family: Family
    content: JsonObject

    @property
    def n_layers(self) -> int:
        return self.integer("num_hidden_layers")

    @property
    def has_experts(self) -> bool:
        return "ffn_gate_inp" in self.family.parts

    def integer(self, key: str) -> int:
        value = self.content.get(key)
        if type(value) is not int or value <= 0:
            raise self.invalid(key)
        self.require_possible(key, value)
        return value

    def require_possible(self, key: str, value: int) -> None:
        largest = _LARGEST.get(key)
        if largest and value > largest:
            raise ModelFileError(self.path, f"{key} is {value:,}; at most {largest:,} are possible", OWN_CONFIGURATION)

    def invalid(self, key: str) -> ModelFileError:
        shown = truncate(ascii(self.content.get(key)), 60)
        return ModelFileError(self.path, f"cannot convert a model with {key} {shown}", USE_GGUF)

    def shape_of(self, part: str) -> Shape | None:
        """Length and number of the rows of a tensor by the part of its name; None if it is not known."""
        hidden, head = self.integer("hidden_size"), self.integer("head_dim")
        queries = head * self.integer("num_attention_heads")
        values = head * self.integer("num_key_value_heads")
        inner = self.integer("intermediate_size")
        if part.endswith("_exps") and "moe_intermediate_size" in self.content:
            inner = self.integer("moe_intermediate_size")
        shapes: dict[str, Shape] = {
            **dict.fromkeys(_NORMS, (hidden,)),
            "attn_q": (hidden, queries),
            "attn_k": (hidden, values),
            "attn_v": (hidden, values),
            "attn_output": (queries, hidden),
            "ffn_gate": (hidden, inner),
            "ffn_up": (hidden, inner),
            "ffn_down": (inner, hidden),
        }
        if self.has_experts:
            shapes["ffn_gate_inp"] = (hidden, self.integer("num_local_experts"))
        if "vocab_size" in self.content:
            shapes |= dict.fromkeys(("token_embd", "output"), (hidden, self.integer("vocab_size")))
        return shapes.get(part.removesuffix("_exps"))

    def metadata(self) -> dict[str, Value]:
        values = {
            key: self.content[name] for key, name in HYPERPARAMETERS.items() if self.content.get(name) is not None
        }
        values |= self._scaling_values()
        if "sliding_window_pattern" in self.content:
            values["attention.sliding_window"] = self.integer("sliding_window")
            values["attention.sliding_window_pattern"] = self._has_window
        return {f"{self.family.architecture}.{key}": self._value(key, value) for key, value in values.items()}

    def _value(self, key: str, value: object) -> Value:
        if key == "rope.scaling.type":
            return Value("STRING", value)
        if isinstance(value, tuple):
            return Value("ARRAY", value, "BOOL")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 32:
            raise self.invalid(HYPERPARAMETERS.get(key, key))
        if key.endswith(_FLOATS):
            return Value("FLOAT32", float(value))
        if value != int(value):
            raise self.invalid(HYPERPARAMETERS.get(key, key))
        return Value("UINT32", int(value))

    @property
    def _has_window(self) -> tuple[bool, ...]:
        """Whether each layer has a sliding window; llama.cpp needs one."""
        period = self.integer("sliding_window_pattern")
        windows = tuple((layer + 1) % period != 0 for layer in range(self.n_layers))
        if kinds := self.content.get("layer_types"):
            if len(kinds) != self.n_layers:
                raise self.invalid("layer_types")
            windows = tuple(kind == "sliding_attention" for kind in kinds)
        if not any(windows):
            raise self.invalid("layer_types")
        return windows

    def _scaling_values(self) -> JsonDict:
        """How the rotary embedding is extended to longer contexts."""
        content, kind = self.content, self.content["rope_type"]
        if kind == "default" or (kind == "llama3" and self.family.architecture == "llama"):
            return {}
        if kind not in ("linear", "yarn"):
            raise self.invalid("rope_type")
        values = {
            "rope.scaling.original_context_length": content["original_max_position_embeddings"],
            "rope.scaling.type": kind,
            "rope.scaling.factor": content["factor"],
        }
        if kind == "yarn" and content.get("attention_factor"):  # llama.cpp multiplies its own with what is stored
            own = 1 + 0.1 * math.log(content["factor"])
            values["rope.scaling.attn_factor"] = content["attention_factor"] / own
        elif content.get("mscale") and content.get("mscale_all_dim"):
            raise self.invalid("mscale")
        return values

    def rope_factors(self) -> list[float]:
        """Divisors of the frequencies of the rotary embedding; none if they are not changed."""
        rope = self.content
        if rope["rope_type"] != "llama3":
            return []
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        factors = []
        size = self.integer("head_dim")
        for index in range(0, size, 2):
            wavelength = 2 * math.pi * rope["rope_theta"] ** (index / size)
            turns = rope["original_max_position_embeddings"] / wavelength
            smooth = min(1.0, max(0.0, (turns - low) / (high - low)))  # 1 for high frequencies
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
        return factors


def configuration(path: Path, content: JsonObject) -> Configuration:
    """The configuration in a file. Raises ModelFileError if such a model cannot be converted."""
    family = _family(path, content)
    if quantization := content.get("quantization_config"):
        method = quantization.get("quant_method")
        raise ModelFileError(path, f"its weights are already quantized ({truncate(str(method), 60)})", FROM_SOURCE)
    whole = {"rope_theta": 10000, **family.defaults, **content, **content.get("text_config", {})}
    if "num_experts" in whole:  # its name in older versions of transformers
        whole["num_local_experts"] = whole["num_experts"]
    checked = Configuration(path, family, whole)
    heads = checked.integer("num_attention_heads")
    whole["num_key_value_heads"] = whole.get("num_key_value_heads") or heads
    whole["head_dim"] = whole.get("head_dim") or checked.integer("hidden_size") // heads
    _set_rope(checked, whole)
    _require_hyperparameters(checked)
    return checked


def _family(path: Path, content: JsonObject) -> Family:
    if not content.get("architectures"):
        raise ModelFileError(path, "has no `architectures`", 'add the class of the model, such as ["LlamaForCausalLM"]')
    architecture = str(content["architectures"][0])
    name = _MULTIMODAL.get(architecture, architecture.removesuffix(_ENDING))
    if name not in FAMILIES or name == architecture:
        shown = truncate(ascii(architecture)[1:-1], 60)
        raise ModelFileError(path, f"cannot convert {shown}", f"supported: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _set_rope(configuration: Configuration, content: JsonDict) -> None:
    """Put parameters of the rotary embedding beside all others: of layers without windows, where others differ."""
    stated: JsonObject = content.get("rope_parameters") or content.get("rope_scaling") or {}
    full: JsonObject = stated.get("full_attention", stated)
    local: JsonObject = stated.get("sliding_attention", {})
    if local.get("rope_type", "default") != "default":
        raise configuration.invalid("rope_parameters")
    if "rope_theta" in local:
        content["rope_local_base_freq"] = local["rope_theta"]
    content |= {"rope_type": full.get("type", "default"), **full}
    content.setdefault("original_max_position_embeddings", configuration.integer("max_position_embeddings"))


def _require_hyperparameters(configuration: Configuration) -> None:
    """Raise ModelFileError without one that llama.cpp needs, or with another than it assumes."""
    content, family = configuration.content, configuration.family
    heads = configuration.integer("num_attention_heads")
    if heads % configuration.integer("num_key_value_heads"):
        raise configuration.invalid("num_key_value_heads")
    if not content.get("rms_norm_eps"):  # 0 or null, for which llama.cpp fails
        raise configuration.invalid("rms_norm_eps")
    used = "num_experts_per_tok"  # llama.cpp aborts the process for more than there are
    if configuration.has_experts and configuration.integer(used) > configuration.integer("num_local_experts"):
        raise configuration.invalid(used)
    assumed = dict(family.assumed)
    if family.architecture == "gemma3":
        assumed["query_pre_attn_scalar"] = content["head_dim"]
        if configuration.n_layers == _GEMMA3_27B_LAYERS:
            assumed["query_pre_attn_scalar"] = configuration.integer("hidden_size") // heads
    for key, value in assumed.items():
        stated = content.get(key, value)
        if stated != value and (stated or value):  # null, 0 and false are the same
            raise configuration.invalid(key)
