"""Compute the sizes of a model, layer by layer, from its metadata and the names and bytes of its tensors."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.contents import MAX_TENSORS, Array, Metadata, Scalar, quoted
from cerebrum_cli.gguf.sizes import LayerSizes, ModelSizes, facts_of

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
    head_lengths = {_head_lengths(keys, layer.window > 0) for layer in layers if layer.key_length}
    return ModelSizes(
        layers=layers,
        input_bytes=input_bytes,
        output_bytes=others.total() - input_bytes,
        is_tied="output.weight" not in others,
        embedding_length=keys.integer("embedding_length"),
        activation_length=_activation_length(keys),
        vocabulary_size=_vocabulary_size(keys),
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


def _vocabulary_size(keys: Hyperparameters) -> int:
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array):
        return tokens.length
    return keys.integer("vocab_size")


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
