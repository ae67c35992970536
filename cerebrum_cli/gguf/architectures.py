"""Tables: what llama.cpp's code determines by the architecture of a model, and no model file states.

From llama.cpp 0c1e57098; the files named below are in its src/.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    "grok minimax-m3": ArchitectureFacts(has_stable_attention=False),
    "kimi-linear minimax-01 plamo2": ArchitectureFacts(is_sequential=True),
    "llama4": ArchitectureFacts(window_period=4, default_window=8192, layer_period=4),
    "plamo3": ArchitectureFacts(window_period=8),
    "qwen35 qwen35moe": ArchitectureFacts(layer_period=4, rolls_back=True),
    "qwen3next smollm3": ArchitectureFacts(layer_period=4),
}
ARCHITECTURES = {name: facts for names, facts in _FACTS.items() for name in names.split()}


def facts_of(architecture: str) -> ArchitectureFacts:
    return ARCHITECTURES.get(architecture, ArchitectureFacts())


# What a file may name, else llama.cpp refuses to load it: `LLM_ARCH_NAMES` in llama-arch.cpp, and the comparisons with
# `tokenizer_model` and `tokenizer_pre` in `llama_vocab::impl::load` of llama-vocab.cpp.
KNOWN_ARCHITECTURES = """
afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bert bitnet bloom chameleon chatglm clip
codeshell cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 dflash
dots1 dots3note dream eagle3 ernie4_5 ernie4_5-moe eurobert exaone exaone-moe exaone4 falcon falcon-h1 gemma
gemma-embedding gemma2 gemma3 gemma3n gemma4 gemma4-assistant glm-dsa glm4 glm4moe glm5-next gpt-oss gpt2 gptj gptneox
granite granite_swa granitehybrid granitemoe graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl
hy_v3 hy_v4 internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 kimi-k3 kimi-linear laguna lfm2 lfm2moe llada
llada-moe llama llama-embed llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm minicpm3 minimax-01 minimax-m2
minimax-m3 mistral3 mistral4 modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h nemotron_h_moe neo-bert
nomic-bert nomic-bert-moe olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3
plm pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3tts qwen3vl qwen3vlmoe
qwen4exp refact rnd1 rwkv6 rwkv6qwen2 rwkv7 seed_oss smallthinker smollm3 spark2_5 stablelm starcoder starcoder2
step35 t5 t5encoder talkie wavtokenizer-dec xverse
"""
KNOWN_TOKENIZERS = "bert gemma4 gpt2 hybriddna llama no_vocab none plamo2 rwkv t5 test whitespace"
KNOWN_PRE_TOKENIZERS = """
a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx deepseek-coder
deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon falcon-h1 falcon3 gemma4
gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-311m granite-embed-multi-97m grok-2
hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano
joyai-llm kanana2 kimi-k2 kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0
minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe
seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion ufakzeka
viking whitespace youtu
"""


def unknown_part(metadata: Mapping[str, object]) -> str | None:
    """What this llama.cpp does not know of a model, in the words of its error; None if it knows all."""
    architecture = metadata.get("general.architecture")
    if architecture not in KNOWN_ARCHITECTURES.split():
        return f"unknown model architecture: {architecture!r}"
    tokenizer = metadata.get("tokenizer.ggml.model", "none")
    if tokenizer not in KNOWN_TOKENIZERS.split():
        return f"unknown tokenizer: {tokenizer!r}"
    pre_tokenizer = metadata.get("tokenizer.ggml.pre") or "default"
    if tokenizer == "gpt2" and pre_tokenizer not in KNOWN_PRE_TOKENIZERS.split():
        return f"unknown pre-tokenizer type: {pre_tokenizer!r}"
    return None
