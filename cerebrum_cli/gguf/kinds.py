"""GGUF files that cannot answer a prompt: what each is, and what to do with it.

The types and architectures are those of llama.cpp 0c1e57098 (gguf-py/gguf/constants.py, tools/).
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
NOT_WHOLE = Kind("a vocabulary without tensors", "use the whole model")
PROJECTOR = Kind(
    "a projector for images or sound, not a language model", "use the language model in the same repository"
)
_BY_TYPE: dict[object, Kind] = {
    "adapter": Kind("a LoRA adapter, not a model", "apply it to its base model: -m MODEL --lora FILE"),
    "controlvector": Kind("a control vector, not a model", "use the model that it was made for"),
    "mmproj": PROJECTOR,
    "imatrix": Kind("an importance matrix, not a model", "use the model that was quantized with it"),
}
_DRAFTS = r"eagle.*|dflash|dspark|medusa|mtp|.*[-_]assistant"
_POOLED = range(1, 5)  # LLAMA_POOLING_TYPE_*, without "none" and "unspecified"


def kind_of(metadata: Mapping[str, object], tensors: Iterable[str]) -> Kind | None:
    """The kind of a file by its metadata and the names of its tensors; None for a language model.

    What else cannot answer, llama.cpp refuses, or `load_model` in engine/llama/load.py after loading.
    """
    if kind := _BY_TYPE.get(metadata.get("general.type")):
        return kind
    architecture = metadata.get("general.architecture")
    if architecture == "clip":
        return PROJECTOR
    if any(key.endswith(".decision.type") for key in metadata):  # llama-server's special models
        return DECISIONS
    if metadata.get(f"{architecture}.attention.causal") is False:
        return NOT_CAUSAL
    if metadata.get(f"{architecture}.pooling_type") in _POOLED:
        return EMBEDDING
    names = list(tensors)
    # The first part of a split model may have no tensors. A model with layers to predict several tokens has others.
    if not names and f"{VOCABULARY}tokens" in metadata and metadata.get("split.count", 1) in (0, 1):
        return NOT_WHOLE
    predicts_only = metadata.get(f"{architecture}.block_count") == metadata.get(f"{architecture}.nextn_predict_layers")
    has_first_layer = any(name.startswith("blk.0.") for name in names)
    is_head = any(".nextn." in name for name in names) and (predicts_only or not has_first_layer)
    if is_head or re.fullmatch(_DRAFTS, str(architecture)):
        return DRAFT
    return None
