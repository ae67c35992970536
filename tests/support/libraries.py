"""Libraries of models in a directory of the test."""

from __future__ import annotations

from pathlib import Path

from cerebrum_cli.models.cache import Cache
from cerebrum_cli.models.fit import Capacity
from cerebrum_cli.models.library import Library


def open_library(directory: Path, catalogue: str) -> Library:
    path = directory / "models.toml"
    path.write_text(catalogue)
    capacity = Capacity(16 * 2**30)
    library = Library((path,), directory / "models", lambda: capacity)
    library.cache = Cache(directory / "hub")
    return library
