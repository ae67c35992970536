"""What a model needs in memory, by layer, and what its architecture determines of its layers and its KV cache."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.gguf.contents import MAX_TENSORS, Array, Metadata, Scalar, quoted


class LayerSizes(NamedTuple):
    """One layer: bytes of weights, elements of keys and of values per token, bytes of state per sequence.

    A layer with a sliding window attends to the last `window` tokens only; 0 is all of them. `expert_bytes` are those
    of the weights that belong to the experts of a mixture, and `largest_tensor` is the size of the largest of all.
    """

    weight_bytes: int
    key_length: int = 0
    value_length: int = 0
    state_bytes: int = 0
    window: int = 0
    expert_bytes: int = 0
    largest_tensor: int = 0


@frozen
class ModelSizes:
    """Sizes by which memory is planned.

    `input_bytes` are the token embeddings, which llama.cpp leaves in host memory; `output_bytes` are the output matrix
    and its norm, which it offloads as one more layer, with a copy of the embeddings if `is_tied`. The other sizes
    determine the compute buffers, as numbers of elements per token: an embedding, the activations of a layer, and
    logits. `head_lengths` are the elements of a key and of a value in one head, for each kind of attention layers.
    `host_expert_bytes` are experts that stay in host memory, wherever their layer is. A step works on `step_states`
    copies of a layer's recurrent state. To generate a token, `active_share` of the weights is read.
    """

    layers: tuple[LayerSizes, ...]
    input_bytes: int = 0
    output_bytes: int = 0
    is_tied: bool = False
    embedding_length: int = 0
    activation_length: int = 0
    vocabulary_size: int = 0
    n_heads: int = 0
    head_lengths: tuple[tuple[int, int], ...] = ()
    host_expert_bytes: int = 0
    step_states: int = 1
    active_share: float = 1.0

    @property
    def active_bytes(self) -> float:
        return self.weight_bytes * self.active_share

    @property
    def weight_bytes(self) -> int:
        others = self.input_bytes + self.output_bytes + self.host_expert_bytes
        return sum((layer.weight_bytes for layer in self.layers), others)

    @property
    def offloaded_output_bytes(self) -> int:
        """Bytes of the output layer on a GPU, which gets a copy of tied embeddings."""
        return self.output_bytes + (self.input_bytes if self.is_tied else 0)

    @property
    def has_experts(self) -> bool:
        return any(layer.expert_bytes for layer in self.layers)

    @property
    def has_windows(self) -> bool:
        return any(layer.window for layer in self.layers)

    @property
    def state_bytes(self) -> int:
        return sum(layer.state_bytes for layer in self.layers)

    @property
    def kv_length(self) -> int:
        """Elements of keys and values per token, over all layers."""
        return sum(layer.key_length + layer.value_length for layer in self.layers)

    def with_weights(self, size: int) -> ModelSizes:
        """The same model with `size` bytes of weights: in another quantization, or of all parts of a split file."""
        whole = max(1, self.weight_bytes)  # 0 in the first part of some split files
        layers = tuple(
            layer._replace(
                weight_bytes=layer.weight_bytes * size // whole,
                expert_bytes=layer.expert_bytes * size // whole,
                largest_tensor=layer.largest_tensor * size // whole,
            )
            for layer in self.layers
        )
        scaled = replace(self, layers=layers, input_bytes=0, output_bytes=self.output_bytes * size // whole)
        return replace(scaled, input_bytes=size - scaled.weight_bytes)

    def with_experts_on_host(self, count: int) -> ModelSizes:
        """The same model with the experts of the first `count` layers in host memory."""
        layers = list(self.layers)
        moved = 0
        for index, layer in enumerate(layers[:count]):
            layers[index] = layer._replace(weight_bytes=layer.weight_bytes - layer.expert_bytes)
            moved += layer.expert_bytes
        return replace(self, layers=tuple(layers), host_expert_bytes=moved)


def uniform_sizes(weight_bytes: int, n_layers: int, kv_length: int) -> ModelSizes:
    """Sizes of a model with known totals only, spread evenly over its layers."""
    return ModelSizes((LayerSizes(weight_bytes // n_layers, kv_length // n_layers),) * n_layers)


class ArchitectureFacts(NamedTuple):
    """What llama.cpp's code determines by the architecture, and no file states; the defaults are those of most.

    From llama.cpp 0c1e57098; the files named below are in its src/.

    - `window_period`, `default_window`: the last layer of each n has no sliding window (the first if n is negative),
      and the window of files that set none (`load_swa_pattern` in models/). Files of other architectures list their
      layers with a window.
    - `layer_period`: of layers without position encoding (`n_no_rope_layer_step` in models/), or with another kind of
      attention
    - `needs_equal_cache_types`: of keys and values, besides those with MLA
      (`llama_init_from_model` in llama-context.cpp)
    - `is_sequential`: llama.cpp aborts when it decodes several sequences (plamo2.cpp:398; others with split KV caches)
    """

    window_period: int = 0
    default_window: int = 0
    layer_period: int = 1
    rolls_back: bool = False
    needs_equal_cache_types: bool = False
    is_sequential: bool = False


_FACTS = {  # of the architectures that a key names
    "afmoe": ArchitectureFacts(window_period=4, layer_period=4),
    "bailingmoe3 glm5-next kimi-k3 lfm2 lfm2moe nemotron_h nemotron_h_moe qwen4exp": ArchitectureFacts(rolls_back=True),
    "cohere2 exaone4 mellum muse-glimmer olmo2": ArchitectureFacts(window_period=4),
    "cohere2moe laguna smallthinker": ArchitectureFacts(window_period=-4),
    "deepseek4": ArchitectureFacts(rolls_back=True, needs_equal_cache_types=True),
    "exaone-moe": ArchitectureFacts(window_period=4, default_window=128),
    "gemma2": ArchitectureFacts(window_period=2, default_window=4096),
    "gemma3": ArchitectureFacts(window_period=6),
    "gemma3n": ArchitectureFacts(window_period=5),
    "gpt-oss": ArchitectureFacts(window_period=2),
    "kimi-linear minimax-01 plamo2": ArchitectureFacts(is_sequential=True),
    "llama4": ArchitectureFacts(window_period=4, default_window=8192, layer_period=4),
    "plamo3": ArchitectureFacts(window_period=8),
    "qwen35 qwen35moe": ArchitectureFacts(layer_period=4, rolls_back=True),
    "qwen3next smollm3": ArchitectureFacts(layer_period=4),
}
ARCHITECTURES = {name: facts for names, facts in _FACTS.items() for name in names.split()}


def facts_of(architecture: str) -> ArchitectureFacts:
    return ARCHITECTURES.get(architecture, ArchitectureFacts())


_LAYER = re.compile(r"blk\.(\d+)\.(\w+)")
_EXPERTS = re.compile(r"ffn_(up|down|gate|gate_up)_(ch)?exps")
_STATE_BYTES = 4  # recurrent states are F32
_KEYS = {"attn_k", "attn_kv_a_mqa", "attn_k_b"}
_RECURRENT = ("ssm_", "time_mix_", "shortconv")
_DELTA_NET = {"ssm_beta", "ssm_ba"}
_INPUT = ("token_", "per_layer_token_embd", "position_embd")


class Hyperparameters:
    """Integers in the metadata of an architecture, validated on access; 0 and () where a key is not set.

    `path` is for error messages. Raises ModelFileError for an unusable value.
    """

    def __init__(self, path: Path, metadata: Metadata) -> None:
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise ModelFileError(path, "not a language model: no general.architecture")
        self._path = path
        self.metadata = metadata
        self.architecture = architecture
        self.n_layers = self.integer("block_count")
        if self.n_layers > MAX_TENSORS:
            raise ModelFileError(path, f"damaged: {self.n_layers:,} layers")
        self.heads = self.per_layer("attention.head_count")
        self.n_heads = max(self.heads, default=0)

    def integer(self, key: str) -> int:
        key = f"{self.architecture}.{key}"
        return checked_integer(self._path, key, self.metadata.get(key, 0))

    def per_layer(self, key: str) -> tuple[int, ...]:
        """Values per layer; the file may have one for all layers."""
        key = f"{self.architecture}.{key}"
        value = self.metadata.get(key)
        if isinstance(value, Array) and value.length == len(value.values):
            return tuple(checked_integer(self._path, key, item) for item in value.values)
        if value is None:
            return ()
        return (checked_integer(self._path, key, value),) * self.n_layers


def model_sizes(keys: Hyperparameters, tensors: Iterable[tuple[str, int]]) -> ModelSizes:
    """Sizes of a model from its metadata, and from the names and bytes of its tensors."""
    by_layer: dict[int, Counter[str]] = defaultdict(Counter)  # bytes by kind of tensor
    others: Counter[str] = Counter()
    input_bytes = 0
    for name, size in tensors:
        if match := _LAYER.match(name):
            by_layer[int(match[1])][match[2]] += size
        else:
            others[name] += size
            input_bytes += size if name.startswith(_INPUT) else 0
    kinds = set().union(*by_layer.values())
    layers = _layer_sizes(keys, by_layer)
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    head_lengths = {_head_lengths(keys, layer.window > 0) for layer in layers if layer.key_length}
    return ModelSizes(
        layers=layers,
        input_bytes=input_bytes,
        output_bytes=others.total() - input_bytes,
        is_tied="output.weight" not in others,
        embedding_length=keys.integer("embedding_length"),
        activation_length=_activation_length(keys),
        vocabulary_size=tokens.length if isinstance(tokens, Array) else keys.integer("vocab_size"),
        n_heads=keys.n_heads,
        head_lengths=tuple(sorted(head_lengths)),
        step_states=2 if _DELTA_NET & kinds else 1,
        active_share=_active_share(keys, layers, others, input_bytes),
    )


def _active_share(keys: Hyperparameters, layers: Iterable[LayerSizes], others: Counter[str], input_bytes: int) -> float:
    """Share of the weights that is read for a token: not the other experts, nor embeddings that are only looked up."""
    unread = input_bytes
    if "output.weight" not in others:
        unread -= others["token_embd.weight"]
    total = others.total()
    used = keys.integer("expert_used_count") / max(1, keys.integer("expert_count"))
    for layer in layers:
        total += layer.weight_bytes
        unread += int(layer.expert_bytes * (1 - used))
    return 1 - unread / max(1, total)


def _activation_length(keys: Hyperparameters) -> int:
    """Elements of the largest activations of a layer, beside four embeddings; found by measuring."""
    feed_forward = max(keys.per_layer("feed_forward_length"), default=0)
    expert_length = keys.integer("expert_feed_forward_length") or feed_forward
    experts = keys.integer("expert_used_count") * expert_length
    recurrent = 2 * keys.integer("ssm.inner_size") - keys.integer("embedding_length")
    return 3 * max(feed_forward, experts, recurrent)


def _layer_sizes(keys: Hyperparameters, by_layer: Mapping[int, Mapping[str, int]]) -> tuple[LayerSizes, ...]:
    """Sizes of each layer; the last layers may predict several tokens, which llama.cpp does not load."""
    kv_heads = keys.per_layer("attention.head_count_kv") or keys.heads or (0,) * keys.n_layers
    n_cached = len(kv_heads) - keys.integer("attention.shared_kv_layers")
    n_used = max(len(kv_heads), keys.n_layers) - keys.integer("nextn_predict_layers")
    windows = dict(enumerate(layer_windows(keys)))
    layers = [LayerSizes(0)] * len(kv_heads)
    for index, n_kv in enumerate(kv_heads[: max(0, n_used)]):
        if index >= n_cached:
            n_kv = 0
        layers[index] = _layer(keys, by_layer.get(index, {}), n_kv, windows.get(index, 0))
    return tuple(layers)


def _layer(keys: Hyperparameters, tensors: Mapping[str, int], n_kv: int, window: int) -> LayerSizes:
    """Sizes of a layer with `n_kv` heads of keys and values.

    A layer without tensors, as in the first part of a split file, counts as an attention layer.
    """
    recurs = any(name.startswith(_RECURRENT) for name in tensors)
    # Fused projections of a layer with a recurrent state are not for attention.
    attends = not tensors or tensors.keys() & _KEYS or ("attn_qkv" in tensors and not recurs)
    if not attends:
        n_kv = 0
    key_length, value_length = _head_lengths(keys, window > 0)
    key_length *= n_kv
    return LayerSizes(
        weight_bytes=sum(tensors.values()),
        key_length=key_length,
        value_length=n_kv * value_length,
        state_bytes=_STATE_BYTES * _state_length(keys) if recurs else 0,
        window=window,
        expert_bytes=sum(size for name, size in tensors.items() if _EXPERTS.fullmatch(name)),
        largest_tensor=max(tensors.values(), default=0),
    )


def layer_windows(keys: Hyperparameters) -> tuple[int, ...]:
    """Sliding window of each layer in tokens, 0 for none; empty if no layer has one.

    The file may have a flag for each layer, or a period n, where one layer in n has no window.
    """
    facts = facts_of(keys.architecture)
    if keys.architecture == "exaone4" and keys.n_layers != 64:  # only the 32B has windows
        return ()
    window = keys.integer("attention.sliding_window") or facts.default_window
    stated = keys.metadata.get(f"{keys.architecture}.attention.sliding_window_pattern")
    if isinstance(stated, Array):
        return tuple(window if has_window else 0 for has_window in stated.values)
    if not facts.window_period:
        return ()
    period = abs(facts.window_period)
    if isinstance(stated, int) and stated:
        period = abs(stated)
    dense = period - 1 if facts.window_period > 0 else 0
    return tuple(0 if index % period == dense else window for index in range(keys.n_layers))


def _head_lengths(keys: Hyperparameters, has_window: bool) -> tuple[int, int]:
    """Elements of a key and of a value in one head."""
    default = 0
    if keys.n_heads:
        default = keys.integer("embedding_length") // keys.n_heads
    key_length = keys.integer("attention.key_length") or default
    value_length = keys.integer("attention.value_length") or default
    if keys.integer("attention.key_length_mla"):
        value_length = 0  # values are part of the keys
    if has_window:
        key_length = keys.integer("attention.key_length_swa") or key_length
        value_length = keys.integer("attention.value_length_swa") or value_length
    return key_length, value_length


def _state_length(keys: Hyperparameters) -> int:
    """Elements of the recurrent state of a layer, as in llama.cpp's llama_hparams: n_embd_r and n_embd_s."""
    embedding = keys.integer("embedding_length")
    if head := keys.integer("wkv.head_size"):
        return embedding * ((keys.integer("token_shift_count") or 2) + head)
    if cache := keys.integer("shortconv.l_cache"):
        return embedding * (cache - 1)
    convolution = max(0, keys.integer("ssm.conv_kernel") - 1)
    if head := keys.integer("kda.head_dim"):
        return keys.n_heads * head * (3 * convolution + head)
    inner = keys.integer("ssm.inner_size")
    state = keys.integer("ssm.state_size")
    return convolution * (inner + 2 * keys.integer("ssm.group_count") * state) + inner * state


def checked_integer(path: Path, key: str, value: Scalar | Array) -> int:
    """A metadata value as an unsigned integer of 32 bits. Raises ModelFileError for any other."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
        raise ModelFileError(path, f"damaged: its {quoted(key)} is {quoted(str(value))}")
    return value
