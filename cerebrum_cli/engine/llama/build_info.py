"""Versions, backends and build features of the installed llama.cpp."""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError, version

from cerebrum_cli.engine.build import Build, read_features
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.devices import accelerators, bind, can_offload


def build() -> Build:
    """Describe the installed build; finding its GPUs initializes their drivers."""
    return Build(
        version=_package_version(),
        ggml=_call_text("ggml_version"),
        backends=_backends(),
        features=read_features(llama.llama_print_system_info().decode("utf-8", "replace")),
        offloads=can_offload(),
        devices=accelerators(),
    )


def _package_version() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:  # not installed as a package
        return "unknown version"


def _backends() -> tuple[str, ...]:
    """Names of the backends that are compiled in or were loaded beside the library."""
    library = llama._lib
    count = bind(library, "ggml_backend_reg_count", ctypes.c_size_t, ())
    get = bind(library, "ggml_backend_reg_get", ctypes.c_void_p, (ctypes.c_size_t,))
    name = bind(library, "ggml_backend_reg_name", ctypes.c_char_p, (ctypes.c_void_p,))
    return tuple(name(get(index)).decode("utf-8", "replace") for index in range(count()))


def _call_text(symbol: str) -> str:
    return str(bind(llama._lib, symbol, ctypes.c_char_p, ())().decode("utf-8", "replace"))
