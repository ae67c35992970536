"""Tables: GGUF files that cannot answer a prompt, what each is and what to do with it, and what llama.cpp can load.

The names are values of general.type and general.architecture: those of llama.cpp 0c1e57098 (gguf-py/gguf/constants.py,
src/llama-arch.cpp, tools/), and of ComfyUI-GGUF, stable-diffusion.cpp and TTS.cpp for images, videos and sound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cerebrum_cli.gguf.contents import VOCABULARY

USE_DECODER = "use a decoder-only model; cerebrum list --available shows some"


class Kind(NamedTuple):
    """What a file is, and a hint."""

    words: str
    hint: str = USE_DECODER


DRAFT = Kind("a draft head for speculative decoding, not a whole model", "use the model that it was made for")
EMBEDDING = Kind("an embedding model or reranker, which generates no text")
NOT_CAUSAL = Kind("an encoder, encoder-decoder or diffusion model, which is not supported")
DECISIONS = Kind("a decision model, which generates no text", "use a chat model; cerebrum decide takes any")
# By regular expressions of the type, the architecture, the name of a tensor, or what `kind_of` writes of the metadata.
_KINDS = {
    "causal False": NOT_CAUSAL,
    "pooling (?!(?:None|0|4294967295)$).*": EMBEDDING,  # LLAMA_POOLING_TYPE_*; "unspecified", -1, is written unsigned
    r"adapter|blk\..*\.lora_a": Kind("a LoRA adapter, not a model", "apply it to its base model: -m MODEL --lora FILE"),
    "controlvector": Kind("a control vector, not a model", "use the model that it was made for"),
    "mmproj|clip|clip.vision": Kind(
        "a projector for images or sound, not a language model", "use the language model in the same repository"
    ),
    "imatrix": Kind("an importance matrix, not a model", "use the model that was quantized with it"),
    "eagle.*|dflash|dspark|medusa|mtp|.*[-_]assistant": DRAFT,
    "(.*-)?bert(-.*)?|eurobert|gemma-embedding|llama-embed": EMBEDDING,
    "dream|llada|llada-moe|rnd1|t5|t5encoder": NOT_CAUSAL,
    "wavtokenizer-dec|vocoder|snac|dac|mimi": Kind("a vocoder, which turns codes into sound", "use a language model"),
    "qwen3tts|pockettts|kokoro|parler-tts|dia|csm|outetts|vibevoice|whisper|parakeet|canary|acestep.*": Kind(
        "a speech or audio model, which does not answer text prompts"
    ),
    r"flux.*|sd[1-3]|sdxl|aura|hidream|cosmos|ltxv|hyvid|wan|lumina2|qwen_image.*|z_image|ideogram|krea2|pig|vae"
    r"|(?:model\.diffusion_model|first_stage_model|cond_stage_model|double_blocks|joint_blocks)\..*": Kind(
        "an image or video model, which generates no text", "use stable-diffusion.cpp or ComfyUI"
    ),
}

# What a file may name, else llama.cpp refuses to load it: `LLM_ARCH_NAMES` in llama-arch.cpp, and the comparisons
# with `tokenizer_model` and `tokenizer_pre` in `llama_vocab::impl::load` of llama-vocab.cpp (0c1e57098).
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


def kind_of(metadata: Mapping[str, object], tensors: Iterable[str]) -> Kind | None:
    """The kind of a file by its metadata and the names of its tensors; None for a language model.

    What else cannot answer, `load_model` in engine/llama/load.py finds after loading.
    """
    if any(key.endswith(".decision.type") for key in metadata):  # llama-server's special models
        return DECISIONS
    architecture = metadata.get("general.architecture")
    causal = metadata.get(f"{architecture}.attention.causal")
    pooling = metadata.get(f"{architecture}.pooling_type")
    tensor_names = "\n".join(tensors)
    names = f"causal {causal}\npooling {pooling}\n{metadata.get('general.type')}\n{architecture}\n{tensor_names}"
    for pattern, kind in _KINDS.items():
        if re.search(f"^(?:{pattern})$", names, re.MULTILINE):
            return kind
    # The first part of a split model may have no tensors. A model with layers to predict several tokens has others.
    if not tensor_names and f"{VOCABULARY}tokens" in metadata and metadata.get("split.count", 1) in (0, 1):
        return Kind("a vocabulary without tensors", "use the whole model")
    layers = metadata.get(f"{architecture}.block_count")
    predicting = metadata.get(f"{architecture}.nextn_predict_layers")
    if ".nextn." in tensor_names and (layers == predicting or "blk.0." not in tensor_names):
        return DRAFT
    return None


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
