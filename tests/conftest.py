"""Tiny real models that several test files share, each written once a session, and two of their vocabularies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tiny_models import write_chatml, write_mistral, write_recurrent, write_sliding_window
from vocabularies import open_vocabulary

from cerebrum_cli.engine.llama.backend import LlamaBackend

settings.register_profile("suite", derandomize=True, deadline=None)  # the same cases everywhere, on slow machines too
settings.load_profile("suite")


@pytest.fixture(scope="session")
def mistral_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a Llama with Mistral's vocabulary."""
    return write_mistral(tmp_path_factory.mktemp("models") / "mistral.gguf")


@pytest.fixture(scope="session")
def chatml_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a Llama with a small byte-level vocabulary and ChatML's tokens."""
    return write_chatml(tmp_path_factory.mktemp("models") / "chatml.gguf")


@pytest.fixture(scope="session")
def recurrent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a Mamba, which cannot forget the last tokens alone."""
    return write_recurrent(tmp_path_factory.mktemp("models") / "recurrent.gguf")


@pytest.fixture(scope="session")
def sliding_window_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a Gemma 2, whose first layer sees the last 32 tokens only."""
    return write_sliding_window(tmp_path_factory.mktemp("models") / "sliding_window.gguf")


@pytest.fixture(scope="session")
def mistral(mistral_model: Path) -> Iterator[LlamaBackend]:
    """Return Mistral's vocabulary, opened by llama.cpp."""
    with open_vocabulary(mistral_model) as backend:
        yield backend


@pytest.fixture(scope="session")
def chatml(chatml_model: Path) -> Iterator[LlamaBackend]:
    """Return the small byte-level vocabulary, opened by llama.cpp."""
    with open_vocabulary(chatml_model) as backend:
        yield backend
