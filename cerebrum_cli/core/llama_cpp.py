"""The installed llama.cpp: which one is required, how it is rebuilt, and what identifies it."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from cerebrum_cli.core.text import pip_install, text_digest

REQUIREMENT = "llama-cpp-python>=0.3.36,<0.3.37"  # as in pyproject.toml


def rebuild_command(option: str = "") -> str:
    command = pip_install(f'--force-reinstall --no-cache-dir --no-deps "{REQUIREMENT}"')
    if not option:
        return command
    return f'CMAKE_ARGS="{option}" {command}'


def build_fingerprint() -> str:
    """Digest that identifies a build of llama.cpp, of the names, sizes and times of its libraries."""
    spec = find_spec("llama_cpp") or find_spec("cerebrum_llama")
    files = []
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder, "lib").glob("*")):
            with suppress(OSError):
                status = path.stat()
                files.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    if not files:
        return "none"
    return text_digest("\n".join(files))[:16]
