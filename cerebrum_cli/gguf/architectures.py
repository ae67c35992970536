"""Table: what llama.cpp's code determines by the architecture of a model, and no model file states.

From llama.cpp 0c1e57098; the files named below are in its src/.
"""

from __future__ import annotations

from typing import NamedTuple


class ArchitectureFacts(NamedTuple):
    """Facts about an architecture; the defaults are those of most.

    - `window_period`, `default_window`: the last layer of each n has no sliding window (the first if n is negative),
      and the window of files that set none (`load_swa_pattern` in models/). Files of other architectures list their
      layers with a window.
    - `layer_period`: of layers without position encoding (`n_no_rope_layer_step` in models/), or with another kind of
      attention
    - `needs_equal_cache_types`: of keys and values, besides those with MLA
      (`llama_init_from_model` in llama-context.cpp)
    - `has_stable_attention`: with padded steps, it does not depend on the rows of other sequences (tested with all)
    - `is_sequential`: llama.cpp aborts when it decodes several sequences (plamo2.cpp:398; others with split KV caches)
    """

    window_period: int = 0
    default_window: int = 0
    layer_period: int = 1
    rolls_back: bool = False
    needs_equal_cache_types: bool = False
    has_stable_attention: bool = True
    is_sequential: bool = False


ARCHITECTURES = {
    "afmoe": ArchitectureFacts(window_period=4, layer_period=4),
    "bailingmoe3": ArchitectureFacts(rolls_back=True),
    "cohere2": ArchitectureFacts(window_period=4),
    "cohere2moe": ArchitectureFacts(window_period=-4),
    "deepseek4": ArchitectureFacts(rolls_back=True, needs_equal_cache_types=True),
    "exaone-moe": ArchitectureFacts(window_period=4, default_window=128),
    "exaone4": ArchitectureFacts(window_period=4),
    "gemma2": ArchitectureFacts(window_period=2, default_window=4096),
    "gemma3": ArchitectureFacts(window_period=6),
    "gemma3n": ArchitectureFacts(window_period=5),
    "glm5-next": ArchitectureFacts(rolls_back=True),
    "gpt-oss": ArchitectureFacts(window_period=2),
    "grok": ArchitectureFacts(has_stable_attention=False),
    "kimi-k3": ArchitectureFacts(rolls_back=True),
    "kimi-linear": ArchitectureFacts(is_sequential=True),
    "laguna": ArchitectureFacts(window_period=-4),
    "lfm2": ArchitectureFacts(rolls_back=True),
    "lfm2moe": ArchitectureFacts(rolls_back=True),
    "llama4": ArchitectureFacts(window_period=4, default_window=8192, layer_period=4),
    "mellum": ArchitectureFacts(window_period=4),
    "minimax-01": ArchitectureFacts(is_sequential=True),
    "minimax-m3": ArchitectureFacts(has_stable_attention=False),
    "muse-glimmer": ArchitectureFacts(window_period=4),
    "nemotron_h": ArchitectureFacts(rolls_back=True),
    "nemotron_h_moe": ArchitectureFacts(rolls_back=True),
    "olmo2": ArchitectureFacts(window_period=4),
    "plamo2": ArchitectureFacts(is_sequential=True),
    "plamo3": ArchitectureFacts(window_period=8),
    "qwen35": ArchitectureFacts(layer_period=4, rolls_back=True),
    "qwen35moe": ArchitectureFacts(layer_period=4, rolls_back=True),
    "qwen3next": ArchitectureFacts(layer_period=4),
    "qwen4exp": ArchitectureFacts(rolls_back=True),
    "smallthinker": ArchitectureFacts(window_period=-4),
    "smollm3": ArchitectureFacts(layer_period=4),
}


def facts_of(architecture: str) -> ArchitectureFacts:
    return ARCHITECTURES.get(architecture, ArchitectureFacts())
