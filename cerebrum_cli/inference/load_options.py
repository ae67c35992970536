"""How a model is loaded with the user's settings: options, and checks before loading."""

from __future__ import annotations

from dataclasses import replace
from platform import machine

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import ATTENTION_KEYS, Settings
from cerebrum_cli.engine.load_options import AdapterFile, GgufFile, LoadOptions, Tuning, plan_repacking
from cerebrum_cli.engine.memory import BLOCK_SIZE, SINGLE, ContextOptions, is_quantized
from cerebrum_cli.inference.profiles import DEFAULT, without_user_settings
from cerebrum_cli.models.model import Model

RELOADING = ("format", "ctx", "lora", "threads", "gpu_layers", *ATTENTION_KEYS, "cache_gb")
FLASH_ATTENTION = {"on": True, "off": False}
NO_FLASH_ATTENTION = ("grok",)  # architectures for which llama.cpp turns it off
ONE_CACHE_TYPE = ("deepseek4",)  # architectures that need equal types of keys and values, besides those with MLA


CHAT_CONTEXT = ContextOptions(slots=16, kv_unified=True)  # one sequence, except for votes


def load_options(
    model: Model,
    settings: Settings,
    context: ContextOptions = SINGLE,
    tuning: Tuning = DEFAULT,
    vocabulary_only: bool = False,
    whole_context: bool = False,
) -> LoadOptions:
    """The load options of a model: those of the context, then the tuning, then the user's settings.

    Raises UsageError for attention settings that llama.cpp would reject.
    """
    require_attention(model, settings, context.pad_steps)
    adapters = tuple(AdapterFile(str(each.path), each.scale) for each in model.adapters)
    context = replace(
        context,
        length=settings.ctx or 0,
        n_threads=settings.threads or 0,
        flash_attention=FLASH_ATTENTION.get(settings.flash_attn or ""),
        cache_type_k=settings.cache_type_k or "f16",
        cache_type_v=settings.cache_type_v or "f16",
    )
    options = LoadOptions(
        GgufFile(model.path, model.trained_context, model.sizes, adapters, model.is_verified),
        context,
        settings.gpu_layers,
        plan_repacking(model.quantization, whole_context, machine()),
        vocabulary_only,
        whole_context,
    )
    return options.with_tuning(without_user_settings(replace(tuning, slots=None), settings))


def require_attention(model: Model, settings: Settings, pad_steps: bool = False) -> None:
    """Raise UsageError for cache types, or a choice of flash attention, that cannot be used with this model."""
    if pad_steps and settings.flash_attn == "off":
        raise UsageError("batch_invariant and flash_attn=off cannot be used together", "omit one of them")
    types = {"cache_type_k": settings.cache_type_k, "cache_type_v": settings.cache_type_v}
    header, name = model.header, model.header.architecture
    for index, (key, given) in enumerate(types.items()):
        if is_quantized(given):
            _require_whole_blocks(f"{key}={given}", [lengths[index] for lengths in header.sizes.head_lengths])
    wants_flash = "flash_attn=on" if settings.flash_attn == "on" else None
    if is_quantized(settings.cache_type_v):
        wants_flash = f"cache_type_v={settings.cache_type_v}"
        if settings.flash_attn == "off":
            raise UsageError(f"{wants_flash} needs flash attention", "omit flash_attn=off, or the cache type")
    if wants_flash and name in NO_FLASH_ATTENTION:
        raise UsageError(
            f"{wants_flash}: llama.cpp has no flash attention for the architecture {name}", f"omit {wants_flash}"
        )
    has_one_type = name in ONE_CACHE_TYPE or f"{name}.attention.key_length_mla" in header.metadata
    if has_one_type and len({given or "f16" for given in types.values()}) > 1:
        problem = f"the architecture {name} needs the same type for keys and values"
        raise UsageError(problem, "give both the same type: --set cache_type=TYPE")


def _require_whole_blocks(option: str, head_lengths: list[int]) -> None:
    wrong = next((length for length in head_lengths if length % BLOCK_SIZE), None)
    if wrong is not None:
        problem = f"{option} needs heads of a multiple of {BLOCK_SIZE} elements, but this model's have {wrong}"
        raise UsageError(problem, f"omit {option}")


def reload_key(settings: Settings) -> tuple[object, ...]:
    """The settings that require the model to be reloaded when they change."""
    return tuple(getattr(settings, key) for key in RELOADING)
