"""How a model file is loaded: its options, and the functions that open it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.events import Emit
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.drafter import MAX_ROLLBACK
from cerebrum_cli.engine.requests import ContextOptions, GgufFile, LoadOptions
from cerebrum_cli.formats.choice import mentions_reasoning
from cerebrum_cli.gguf.sizes import facts_of
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.replies.attention import require_attention

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.engine.step import StopFlag

TRY_TEMPLATE = "cerebrum_cli.formats.template.try_template"  # what a child process calls with an unknown file
LOADED_FILES = "loaded_files.json"  # in the data directory
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
        context = replace(context, n_rs_seq=MAX_ROLLBACK)
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


def try_template_file(data_directory: Path, path: Path) -> None:
    """Raise ModelFileError for a file whose chat template takes too much time or memory in a process with limits."""
    from cerebrum_cli.engine.llama.first_load import require_loads
    from cerebrum_cli.engine.step import StopFlag

    require_loads(path, data_directory / LOADED_FILES, StopFlag(), check=TRY_TEMPLATE, kind="template")


def open_with_llama(data_directory: Path, devices: str, options: LoadOptions, emit: Emit, stop: StopFlag) -> Backend:
    from cerebrum_cli.engine.llama.load import open_llama

    return open_llama(options, emit, stop, data_directory / devices, data_directory / LOADED_FILES, TRY_TEMPLATE)
