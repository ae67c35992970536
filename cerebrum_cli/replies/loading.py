"""How a model file is loaded with some settings."""

from __future__ import annotations

from dataclasses import replace

from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.requests import ContextOptions, GgufFile, LoadOptions
from cerebrum_cli.formats.choice import mentions_reasoning
from cerebrum_cli.gguf.sizes import facts_of
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.attention import require_attention

FLASH_ATTENTION = {"on": True, "off": False}


def load_options(
    model: InstalledModel, settings: Settings, context: ContextOptions, vocabulary_only: bool, is_chat: bool
) -> LoadOptions:
    """How to load the model. Raises UsageError for attention that is rejected.

    Speculative decoding needs copies of recurrent states: only if it was asked for.
    """
    require_attention(model.header, settings, context.pad_steps)
    applied = () if vocabulary_only else model.adapters
    adapters = tuple((adapter.path, adapter.scale) for adapter in applied)
    if settings.speculative and facts_of(model.header.architecture).rolls_back:
        context = replace(context, rolls_back=True)
    context = replace(
        context,
        length=settings.ctx or 0,
        n_threads=settings.threads or 0,
        flash_attention=FLASH_ATTENTION.get(settings.flash_attn or "", context.flash_attention),
        cache_type_k=settings.cache_type_k or context.cache_type_k,
        cache_type_v=settings.cache_type_v or context.cache_type_v,
    )
    thinks = mentions_reasoning(model.header.chat_template)
    file = GgufFile(
        model.path,
        model.trained_context,
        model.sizes,
        adapters,
        model.is_verified,
        thinks,
        model.quantization,
    )
    return LoadOptions(
        file,
        context,
        settings.gpu_layers,
        vocabulary_only=vocabulary_only,
        whole_context=is_chat,
        cpu_moe=settings.cpu_moe,
    )
