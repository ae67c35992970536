"""A table of GGUF files that cannot answer a prompt: what each is, and what to do with it.

The names are values of general.type and general.architecture: those of llama.cpp 0c1e57098 (gguf-py/gguf/constants.py,
tools/), and of ComfyUI-GGUF, stable-diffusion.cpp and TTS.cpp for images, videos and sound.
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
