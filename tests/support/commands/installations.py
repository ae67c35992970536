"""Installations whose models are opened in other ways than a user's."""

from pathlib import Path
from tempfile import gettempdir
from typing import Any

from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local import OpenFile
from cerebrum_cli.formats.choice import ChosenFormat
from cerebrum_cli.library import installed
from cerebrum_cli.library.installed import NANO
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.source import Installation, ModelSource

NOWHERE = Path(gettempdir()) / "cerebrum-tests-without-installation"


def installation(open_file: OpenFile = open_llama, home: Path = NOWHERE) -> Installation:
    """An installation that opens model files with a function, by default llama.cpp."""
    return Installation(home / "config", home / "data", home / "cache", open_file)


def source_of(path: Path, settings: Settings | None = None, name: str = "tiny", **use: Any) -> ModelSource:
    return ModelSource(installation(), installed.InstalledModel(name, (path,)), settings or Settings(cache_gb=0), **use)


def model_on(engine: Engine, chosen: ChosenFormat) -> Model:
    return Model(source_of(NANO), engine, chosen)
