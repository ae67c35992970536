"""What a model needs in memory, by layer, and what its architecture determines of its layers and its KV cache."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from cerebrum_cli.core.frozen import frozen


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
