"""Sizes of a model in memory, by layer: weights, keys and values per token, and recurrent state per sequence."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple

from cerebrum_cli.gguf.architectures import facts_of

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
    weights that belong to the experts of a mixture.
    """

    weight_bytes: int
    key_length: int = 0
    value_length: int = 0
    state_bytes: int = 0
    adapter_bytes: int = 0
    window: int = 0
    expert_bytes: int = 0


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
                weight_bytes=layer.weight_bytes * size // whole, expert_bytes=layer.expert_bytes * size // whole
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

    def with_adapters(self, tensors: Iterable[tuple[str, int]]) -> ModelSizes:
        """The same model with tensors of adapters, by the name of the tensor that each applies to."""
        added: dict[int, int] = defaultdict(int)
        input_bytes, output_bytes = self.input_bytes, self.output_bytes
        for name, size in tensors:
            if match := _LAYER.match(name):
                added[int(match[1])] += size
            elif name.startswith(_INPUT):
                input_bytes += size
            else:
                output_bytes += size
        layers = tuple(
            layer._replace(adapter_bytes=layer.adapter_bytes + added[index]) for index, layer in enumerate(self.layers)
        )
        return replace(self, layers=layers, input_bytes=input_bytes, output_bytes=output_bytes)


def uniform_sizes(weight_bytes: int, n_layers: int, kv_length: int) -> ModelSizes:
    """Sizes of a model with known totals only, spread evenly over its layers."""
    even = LayerSizes(weight_bytes // n_layers, kv_length // n_layers)
    first = LayerSizes(weight_bytes - even.weight_bytes * (n_layers - 1), kv_length - even.key_length * (n_layers - 1))
    return ModelSizes((first, *(even,) * (n_layers - 1)))


def model_sizes(
    tensors: Iterable[tuple[str, int]],
    hyperparameter: Callable[[str], int],
    per_layer: Callable[[str], tuple[int, ...]],
    vocabulary_size: int,
    windows: Sequence[int] = (),
) -> ModelSizes:
    """Sizes of a model from the names and bytes of its tensors and from its metadata, 0 and () where a key is not set.

    `windows` as in `layer_windows`. A layer without tensors, as in the first part of a split file, counts as an
    attention layer. The last layers may predict several tokens, which llama.cpp does not load.
    """
    own: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))  # of each layer, by the kind of tensor
    others: dict[str, int] = {}
    for name, size in tensors:
        if match := _LAYER.match(name):
            own[int(match[1])][match[2]] += size
        else:
            others[name] = size
    embedding, heads = hyperparameter("embedding_length"), per_layer("attention.head_count")
    kv_heads, n_heads = per_layer("attention.head_count_kv") or heads, max(heads, default=0)
    lengths, window_lengths = _head_lengths(hyperparameter, embedding // n_heads if n_heads else 0)
    n_cached = len(kv_heads) - hyperparameter("attention.shared_kv_layers")
    n_used = max(len(kv_heads), hyperparameter("block_count")) - hyperparameter("nextn_predict_layers")
    layers, head_lengths = list[LayerSizes](), set()
    for index, heads_here in enumerate(kv_heads or (0,) * hyperparameter("block_count")):
        if index >= n_used:
            layers.append(LayerSizes(0))
            continue
        names = own[index].keys()
        # Fused projections of a layer with a recurrent state are not for attention.
        attends = not names or names & _KEYS or ("attn_qkv" in names and not _recurs(names))
        n_kv = heads_here if index < n_cached and attends else 0
        window = windows[index] if index < len(windows) else 0
        key_length, value_length = window_lengths if window else lengths
        if n_kv:
            head_lengths.add((key_length, value_length))
        indexed = hyperparameter("attention.indexer.key_length") if _INDEXER in names else 0
        layers.append(
            LayerSizes(
                weight_bytes=sum(own[index].values()),
                key_length=n_kv * key_length + indexed,
                value_length=n_kv * value_length,
                state_bytes=_STATE_BYTES * _state_length(hyperparameter, n_heads) if _recurs(names) else 0,
                window=window,
                expert_bytes=sum(size for name, size in own[index].items() if _EXPERTS.fullmatch(name)),
            )
        )
    input_bytes = sum(size for name, size in others.items() if name.startswith(_INPUT))
    kinds = set().union(*own.values())
    return ModelSizes(
        tuple(layers),
        input_bytes,
        sum(others.values()) - input_bytes,
        "output.weight" not in others,
        embedding,
        _activation_length(hyperparameter, per_layer),
        vocabulary_size,
        n_heads,
        tuple(sorted(head_lengths)),
        step_states=2 if _DELTA_NET & kinds else 1,
        indexer_length=_indexer_length(hyperparameter, per_layer) if _INDEXER in kinds else 0,
    )


def layer_windows(
    architecture: str, n_layers: int, hyperparameter: Callable[[str], int], pattern: int | Sequence[object]
) -> tuple[int, ...]:
    """Sliding window of each layer in tokens, 0 for none.

    `pattern` comes from the file: a flag for each layer, or a period n, where one layer in n has no window; 0 if the
    file has none.
    """
    facts = facts_of(architecture)
    window = hyperparameter("attention.sliding_window") or facts.default_window
    if architecture == "exaone4" and n_layers != 64:  # only the 32B has windows
        return ()
    if isinstance(pattern, int):
        every = abs(pattern or facts.window_period)
        dense = every - 1 if facts.window_period > 0 else 0
        pattern = [index % every != dense for index in range(n_layers)] if facts.window_period else ()
    return tuple(window if has_window else 0 for has_window in pattern)


def _head_lengths(hyperparameter: Callable[[str], int], default: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Elements of a key and of a value in one head, of layers without and with a window."""
    key_length = hyperparameter("attention.key_length") or default
    value_length = hyperparameter("attention.value_length") or default
    if hyperparameter("attention.key_length_mla"):
        value_length = 0  # values are part of the keys
    return (key_length, value_length), (
        hyperparameter("attention.key_length_swa") or key_length,
        hyperparameter("attention.value_length_swa") or value_length,
    )


def _indexer_length(hyperparameter: Callable[[str], int], per_layer: Callable[[str], tuple[int, ...]]) -> int:
    """Elements that sparse attention scores for a row and a cell, found by measuring; some score blocks of cells."""
    block = max(per_layer("attention.compress_ratios"), default=0)
    return 2 + 2 * hyperparameter("attention.indexer.head_count") // block if block else 6


def _recurs(names: Set[str]) -> bool:
    return any(name.startswith(_RECURRENT) for name in names)


def _state_length(hyperparameter: Callable[[str], int], n_heads: int) -> int:
    """Elements of the recurrent state of a layer, as in llama.cpp's llama_hparams: n_embd_r and n_embd_s."""
    embedding, convolution = hyperparameter("embedding_length"), max(0, hyperparameter("ssm.conv_kernel") - 1)
    if head := hyperparameter("wkv.head_size"):
        return embedding * ((hyperparameter("token_shift_count") or 2) + head)
    if cache := hyperparameter("shortconv.l_cache"):
        return embedding * (cache - 1)
    if head := hyperparameter("kda.head_dim"):
        return n_heads * head * (3 * convolution + head)
    inner, state = hyperparameter("ssm.inner_size"), hyperparameter("ssm.state_size")
    return convolution * (inner + 2 * hyperparameter("ssm.group_count") * state) + inner * state


def _activation_length(hyperparameter: Callable[[str], int], per_layer: Callable[[str], tuple[int, ...]]) -> int:
    """Elements per token of the largest activations of a layer, beside four embeddings; found by measuring."""
    feed_forward = max(per_layer("feed_forward_length"), default=0)
    experts = hyperparameter("expert_used_count") * (hyperparameter("expert_feed_forward_length") or feed_forward)
    recurrent = 6 * hyperparameter("ssm.inner_size") - 3 * hyperparameter("embedding_length")
    return max(3 * feed_forward, 3 * experts, recurrent)
