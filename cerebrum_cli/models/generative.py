"""Models that llama.cpp cannot load, or that do not generate text, recognized by their header."""

from __future__ import annotations

import math
from pathlib import Path

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.header import Header

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
HINT = "use a decoder-only model; cerebrum list --available shows some"

_EMBEDS = "which computes embeddings and generates no text"
_ENCODER_ONLY = f"an encoder-only model, {_EMBEDS}"
_ENCODER_DECODER = "an encoder-decoder model, which is not supported"
_DIFFUSION = "a diffusion model, which is not supported"
_VOCODER = "a vocoder, which turns audio tokens into sound and generates no text"
_POOLING = {4: "a reranker, which scores texts and generates none"}  # LLAMA_POOLING_TYPE_RANK; 0 is none
# By general.architecture (llama.cpp 0c1e57098). Other files say it in their metadata, and what neither shows,
# `require_decoder` in engine/llama/load.py finds after loading.
_ENCODERS = (
    "bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert gemma-embedding llama-embed"
    " t5encoder"
)
_ARCHITECTURES = {
    **dict.fromkeys(_ENCODERS.split(), _ENCODER_ONLY),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), _DIFFUSION),
    "t5": _ENCODER_DECODER,
    "wavtokenizer-dec": _VOCODER,
}


def unsupported_kind(header: Header) -> str | None:
    """The kind of a model that cannot answer a prompt; None for one that can."""
    name, metadata = header.architecture, header.metadata
    if kind := _ARCHITECTURES.get(name):
        return kind
    if metadata.get(f"{name}.attention.causal") is False:
        return _ENCODER_ONLY
    if pooling := metadata.get(f"{name}.pooling_type"):
        return _POOLING.get(pooling, f"an embedding model, {_EMBEDS}") if isinstance(pooling, int) else None
    return None


def require_generative(path: Path, header: Header) -> None:
    """Raise ModelFileError for a model that llama.cpp cannot load, or that cannot answer a prompt."""
    require_loadable(path, header)
    if kind := unsupported_kind(header):
        raise ModelFileError(path, f"{kind} (architecture {header.architecture})", HINT)


def require_loadable(path: Path, header: Header) -> None:
    """Raise ModelFileError for a file that llama.cpp would crash on or does not support, before a load or download."""
    if header.per_expert_tensors:
        raise ModelFileError(
            path,
            "made before April 2024 with one tensor per expert, which llama.cpp no longer loads",
            "pull a newer conversion of this model; for Cerebrum-1.0-8x7b: cerebrum pull cerebrum-8x7b",
        )
    if problem := _defect(header):
        raise ModelFileError(path, f"damaged: {problem}", "pull it again, or pull another conversion of this model")


def _defect(header: Header) -> str | None:
    """Value of a header that llama.cpp asserts to be otherwise; None if there is none."""
    if not header.tensor_count:
        return "it has no tensors"
    if not 0 < header.n_layers <= MAX_LAYERS:
        return f"it has {header.n_layers:,} layers"
    for key, value in header.metadata.items():
        if key.endswith("epsilon") and isinstance(value, float) and not 0 <= value < math.inf:
            return f"its {key} is {value}"
    return None
