"""How a model file is loaded with some settings, and whether it can have the cache types that they ask for."""

from __future__ import annotations

from dataclasses import replace

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.formats.choice import mentions_reasoning
from cerebrum_cli.gguf.contents import TENSOR_TYPES, TYPE_NUMBERS
from cerebrum_cli.gguf.header import Header
from cerebrum_cli.gguf.sizes import facts_of
from cerebrum_cli.library.installed import InstalledModel

FLASH_ATTENTION = {"on": True, "off": False}


def load_options(
    model: InstalledModel, settings: Settings, context: ContextOptions, vocabulary_only: bool, is_chat: bool
) -> LoadOptions:
    """How to load the model. Raises UsageError for cache types that it cannot have.

    Speculative decoding needs copies of recurrent states: only if it was asked for.
    """
    require_cache_types(model.header, settings)
    applied = () if vocabulary_only else model.adapters
    adapters = tuple((adapter.path, adapter.scale) for adapter in applied)
    if settings.speculative and facts_of(model.header.architecture).rolls_back:
        context = replace(context, rolls_back=True)
    context = replace(
        context,
        length=settings.ctx or 0,
        n_threads=settings.threads or 0,
        flash_attention=FLASH_ATTENTION.get(settings.flash_attn or "", context.flash_attention),
    )
    if settings.cache_type:
        keys, values = settings.cache_types
        context = replace(context, cache_type_k=keys, cache_type_v=values)
    return LoadOptions(
        model.path,
        model.trained_context,
        model.sizes,
        context,
        settings.gpu_layers,
        vocabulary_only=vocabulary_only,
        whole_context=is_chat,
        cpu_moe=settings.cpu_moe,
        adapters=adapters,
        is_verified=model.is_verified,
        thinks=mentions_reasoning(model.header.chat_template),
        quantization=model.quantization,
    )


def require_cache_types(header: Header, settings: Settings) -> None:
    """Raise UsageError for types of the KV cache that cannot be used with this model."""
    types = settings.cache_types
    for index, cache_type in enumerate(types):  # whose blocks must fill heads
        block_size = TENSOR_TYPES[TYPE_NUMBERS[cache_type.upper()]].block_size
        for lengths in header.sizes.head_lengths:
            if lengths[index] % block_size:
                needed = f"heads with a multiple of {block_size} elements"
                problem = f"cache_type={settings.cache_type} needs {needed}; this model's have {lengths[index]}"
                raise UsageError(problem, f"omit cache_type={settings.cache_type}")
    facts = facts_of(header.architecture)
    if types[0] != types[1] and (has_mla(header) or facts.needs_equal_cache_types):
        problem = f"the architecture {header.architecture} needs the same type for keys and values"
        raise UsageError(problem, "set one type, as in --set cache_type=q8_0")


def has_mla(header: Header) -> bool:
    return bool(header.metadata.get(f"{header.architecture}.attention.key_length_mla"))
