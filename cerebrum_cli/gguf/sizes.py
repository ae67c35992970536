"""Sizes of a model in memory, by layer: weights, keys and values per token, and recurrent state per sequence."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.architectures import facts_of
from cerebrum_cli.gguf.parser import MAX_TENSORS, Array, Metadata, checked_integer

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)")
_EXPERTS = re.compile(r"ffn_(up|down|gate|gate_up)_(ch)?exps")
_STATE_BYTES = 4  # recurrent states are F32
_KEYS = {"attn_k", "attn_kv_a_mqa", "attn_k_b"}
_RECURRENT = ("ssm_", "time_mix_", "shortconv")
_DELTA_NET = {"ssm_beta", "ssm_ba"}
_INDEXER = "indexer"  # chooses the cells that sparse attention reads
_INPUT = ("token_", "per_layer_token_embd", "position_embd")


class LayerSizes(NamedTuple):
    """One layer: bytes of weights, elements of keys and of values per token, bytes of state per sequence.

    `adapter_bytes` are the weights of adapters, which are allocated where those of the model may be mapped. A layer
    with a sliding window attends to the last `window` tokens only; 0 is all of them. `expert_bytes` are those of the
    weights that belong to the experts of a mixture, and `largest_tensor` is the size of the largest of all.
    """

    weight_bytes: int
    key_length: int = 0
    value_length: int = 0
    state_bytes: int = 0
    adapter_bytes: int = 0
    window: int = 0
    expert_bytes: int = 0
    largest_tensor: int = 0


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Sizes by which memory is planned.

    `input_bytes` are the token embeddings, which llama.cpp leaves in host memory; `output_bytes` are the output matrix
    and its norm, which it offloads as one more layer, with a copy of the embeddings if `is_tied`. The other sizes
    determine the compute buffers, as numbers of elements per token: an embedding, the activations of a layer, and
    logits. `head_lengths` are the elements of a key and of a value in one head, for each kind of attention layers.
    `host_expert_bytes` are experts that stay in host memory, wherever their layer is. A step works on `step_states`
    copies of a layer's recurrent state, and where attention is sparse, on `indexer_length` elements for each pair of a
    row and a cell.
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
    indexer_length: int = 0

    @property
    def weight_bytes(self) -> int:
        others = self.input_bytes + self.output_bytes + self.host_expert_bytes
        return others + sum(layer.weight_bytes for layer in self.layers)

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
        whole = self.weight_bytes
        if not whole or any(layer.key_length and not layer.weight_bytes for layer in self.layers):  # a part, or unknown
            even = size // max(1, len(self.layers))
            layers = tuple(layer._replace(weight_bytes=even) for layer in self.layers)
            return replace(self, layers=layers, input_bytes=size - even * len(layers), output_bytes=0)
        layers = tuple(
            layer._replace(
                weight_bytes=layer.weight_bytes * size // whole,
                expert_bytes=layer.expert_bytes * size // whole,
                largest_tensor=layer.largest_tensor * size // whole,
            )
            for layer in self.layers
        )
        output_bytes = self.output_bytes * size // whole
        input_bytes = size - output_bytes - sum(layer.weight_bytes for layer in layers)
        return replace(self, layers=layers, input_bytes=input_bytes, output_bytes=output_bytes)

    def with_experts_on_host(self, count: int) -> ModelSizes:
        """The same model with the experts of the first `count` layers in host memory."""
        moved = self.layers[:count]
        without_experts = (layer._replace(weight_bytes=layer.weight_bytes - layer.expert_bytes) for layer in moved)
        layers = (*without_experts, *self.layers[count:])
        return replace(self, layers=layers, host_expert_bytes=sum(layer.expert_bytes for layer in moved))

    def with_adapters(self, size: int) -> ModelSizes:
        """The same model with `size` bytes of adapters, which mostly change all layers alike."""
        even = -(-size // max(1, len(self.layers)))
        return replace(
            self, layers=tuple(layer._replace(adapter_bytes=layer.adapter_bytes + even) for layer in self.layers)
        )


def uniform_sizes(weight_bytes: int, n_layers: int, kv_length: int) -> ModelSizes:
    """Sizes of a model with known totals only, spread evenly over its layers."""
    return ModelSizes((LayerSizes(weight_bytes // n_layers, kv_length // n_layers),) * n_layers)


class Hyperparameters:
    """Integers in the metadata of an architecture, validated on access; 0 and () where a key is not set.

    `path` is for error messages. Raises ModelFileError for an unusable value.
    """

    def __init__(self, path: Path, metadata: Metadata) -> None:
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise ModelFileError(path, "not a language model: no general.architecture")
        self._path, self.metadata, self.architecture = path, metadata, architecture
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
        return () if value is None else (checked_integer(self._path, key, value),) * self.n_layers


def model_sizes(keys: Hyperparameters, tensors: Iterable[tuple[str, int]]) -> ModelSizes:
    """Sizes of a model from its metadata, and from the names and bytes of its tensors."""
    by_layer: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))  # and by kind
    others: dict[str, int] = {}
    for name, size in tensors:
        if match := _LAYER.match(name):
            by_layer[int(match[1])][match[2]] += size
        else:
            others[name] = size
    layers, head_lengths = _layer_sizes(keys, by_layer)
    input_bytes = sum(size for name, size in others.items() if name.startswith(_INPUT))
    kinds = set().union(*by_layer.values())
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    # Of the largest activations of a layer, beside four embeddings; found by measuring.
    feed_forward = max(keys.per_layer("feed_forward_length"), default=0)
    experts = keys.integer("expert_used_count") * (keys.integer("expert_feed_forward_length") or feed_forward)
    recurrent = 2 * keys.integer("ssm.inner_size") - keys.integer("embedding_length")
    return ModelSizes(
        layers,
        input_bytes,
        sum(others.values()) - input_bytes,
        "output.weight" not in others,
        keys.integer("embedding_length"),
        3 * max(feed_forward, experts, recurrent),
        tokens.length if isinstance(tokens, Array) else keys.integer("vocab_size"),
        keys.n_heads,
        tuple(sorted(head_lengths)),
        step_states=2 if _DELTA_NET & kinds else 1,
        indexer_length=_indexer_length(keys) if _INDEXER in kinds else 0,
    )


def _layer_sizes(
    keys: Hyperparameters, by_layer: Mapping[int, Mapping[str, int]]
) -> tuple[tuple[LayerSizes, ...], set[tuple[int, int]]]:
    """Sizes of each layer, and the elements of a key and of a value in one head, for each kind of attention layers.

    A layer without tensors, as in the first part of a split file, counts as an attention layer. The last layers may
    predict several tokens, which llama.cpp does not load.
    """
    kv_heads = keys.per_layer("attention.head_count_kv") or keys.heads or (0,) * keys.n_layers
    n_cached = len(kv_heads) - keys.integer("attention.shared_kv_layers")
    n_used = max(len(kv_heads), keys.n_layers) - keys.integer("nextn_predict_layers")
    windows = layer_windows(keys)
    layers, head_lengths = [LayerSizes(0)] * len(kv_heads), set()
    for index, count in enumerate(kv_heads[: max(0, n_used)]):
        tensors = by_layer.get(index, {})
        recurs = any(name.startswith(_RECURRENT) for name in tensors)
        # Fused projections of a layer with a recurrent state are not for attention.
        attends = not tensors or tensors.keys() & _KEYS or ("attn_qkv" in tensors and not recurs)
        n_kv = count if index < n_cached and attends else 0
        window = windows[index] if index < len(windows) else 0
        key_length, value_length = _head_lengths(keys, window > 0)
        if n_kv:
            head_lengths.add((key_length, value_length))
        layers[index] = LayerSizes(
            weight_bytes=sum(tensors.values()),
            key_length=n_kv * key_length + (keys.integer("attention.indexer.key_length") if _INDEXER in tensors else 0),
            value_length=n_kv * value_length,
            state_bytes=_STATE_BYTES * _state_length(keys) if recurs else 0,
            window=window,
            expert_bytes=sum(size for name, size in tensors.items() if _EXPERTS.fullmatch(name)),
            largest_tensor=max(tensors.values(), default=0),
        )
    return tuple(layers), head_lengths


def layer_windows(keys: Hyperparameters) -> tuple[int, ...]:
    """Sliding window of each layer in tokens, 0 for none.

    The file may have a flag for each layer, or a period n, where one layer in n has no window.
    """
    facts = facts_of(keys.architecture)
    window = keys.integer("attention.sliding_window") or facts.default_window
    if keys.architecture == "exaone4" and keys.n_layers != 64:  # only the 32B has windows
        return ()
    stated = keys.metadata.get(f"{keys.architecture}.attention.sliding_window_pattern")
    if isinstance(stated, Array):
        flags: Sequence[object] = stated.values
    else:
        period = abs(stated if isinstance(stated, int) and stated else facts.window_period)
        dense = period - 1 if facts.window_period > 0 else 0
        flags = [index % period != dense for index in range(keys.n_layers)] if facts.window_period else ()
    return tuple(window if has_window else 0 for has_window in flags)


def _head_lengths(keys: Hyperparameters, has_window: bool) -> tuple[int, int]:
    """Elements of a key and of a value in one head."""
    default = keys.integer("embedding_length") // keys.n_heads if keys.n_heads else 0
    key_length = keys.integer("attention.key_length") or default
    value_length = keys.integer("attention.value_length") or default
    if keys.integer("attention.key_length_mla"):
        value_length = 0  # values are part of the keys
    if not has_window:
        return key_length, value_length
    return (
        keys.integer("attention.key_length_swa") or key_length,
        keys.integer("attention.value_length_swa") or value_length,
    )


def _indexer_length(keys: Hyperparameters) -> int:
    """Elements that sparse attention scores for a row and a cell, found by measuring; some score blocks of cells."""
    block = max(keys.per_layer("attention.compress_ratios"), default=0)
    return 2 + 2 * keys.integer("attention.indexer.head_count") // block if block else 6


def _state_length(keys: Hyperparameters) -> int:
    """Elements of the recurrent state of a layer, as in llama.cpp's llama_hparams: n_embd_r and n_embd_s."""
    embedding, convolution = keys.integer("embedding_length"), max(0, keys.integer("ssm.conv_kernel") - 1)
    if head := keys.integer("wkv.head_size"):
        return embedding * ((keys.integer("token_shift_count") or 2) + head)
    if cache := keys.integer("shortconv.l_cache"):
        return embedding * (cache - 1)
    if head := keys.integer("kda.head_dim"):
        return keys.n_heads * head * (3 * convolution + head)
    inner, state = keys.integer("ssm.inner_size"), keys.integer("ssm.state_size")
    return convolution * (inner + 2 * keys.integer("ssm.group_count") * state) + inner * state
