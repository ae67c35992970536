"""Whether a model's attention allows the cache types, flash attention and padding that settings ask for."""

from __future__ import annotations

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.gguf.contents import TENSOR_TYPES, TYPE_NUMBERS
from cerebrum_cli.gguf.header import Header
from cerebrum_cli.gguf.sizes import facts_of


def require_attention(header: Header, settings: Settings, pad_steps: bool) -> None:
    """Raise UsageError for cache types, or a choice of flash attention, that cannot be used with this model."""
    if pad_steps and settings.flash_attn == "off":
        raise UsageError.conflict("batch_invariant", "flash_attn=off")
    if pad_steps and not has_stable_attention(header):
        name = header.architecture
        problem = f"batch_invariant=on: attention of the architecture {name} depends on other rows in llama.cpp"
        raise UsageError(problem, "omit batch_invariant=on")
    require_block_sizes(header, "cache_type_k", settings.cache_type_k, 0)
    require_block_sizes(header, "cache_type_v", settings.cache_type_v, 1)
    facts = facts_of(header.architecture)
    types = settings.cache_type_k or "f16", settings.cache_type_v or "f16"
    if types[0] != types[1] and (has_mla(header) or facts.needs_equal_cache_types):
        raise UsageError(
            f"the architecture {header.architecture} needs the same type for keys and values",
            "set both with --set cache_type=TYPE",
        )


def require_block_sizes(header: Header, key: str, cache_type: str | None, index: int) -> None:
    """Raise UsageError for a quantized cache whose blocks do not fill heads; `index` is that of keys, or of values."""
    if cache_type is None:
        return
    block_size = TENSOR_TYPES[TYPE_NUMBERS[cache_type.upper()]].block_size
    for lengths in header.sizes.head_lengths:
        if lengths[index] % block_size:
            needed = f"heads with a multiple of {block_size} elements"
            problem = f"{key}={cache_type} needs {needed}; this model's have {lengths[index]}"
            raise UsageError(problem, f"omit {key}={cache_type}")


def has_stable_attention(header: Header) -> bool:
    """Whether attention with padded steps does not depend on other sequences: with MLA, it multiplies by slot."""
    return facts_of(header.architecture).has_stable_attention and not has_mla(header)


def has_mla(header: Header) -> bool:
    return bool(header.metadata.get(f"{header.architecture}.attention.key_length_mla"))
