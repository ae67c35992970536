"""Vocabulary files: a model's header alone, where the model itself is on a server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from libraries import open_library

from cerebrum_cli.core.errors import ModelFileError, ModelNotFound
from cerebrum_cli.models.cache import Cache
from cerebrum_cli.models.library import Library

COMMIT, DIGEST = "c" * 40, "d" * 64
REPO = "someone/Thinker-GGUF"

CATALOGUE = f"""
[models.thinker]
title = "Thinker-1.0"
repo_id = "{REPO}"
file = "Thinker-{{quant}}.gguf"

[models.packed]
[models.packed.package]
requirement = "packed==1"
member = "packed/Packed.Q4_1.gguf"
sha256 = "{DIGEST}"
size = 1000
download_size = 10
"""


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """An empty library whose catalog knows two models."""
    return open_library(tmp_path, CATALOGUE)


def store(cache: Cache, model: Path) -> Path:
    """Store a file in a cache."""
    name = "Thinker-Q4_K_M.gguf"
    cache.make_directories(REPO, COMMIT, name, DIGEST)
    cache.blob(REPO, DIGEST).write_bytes(model.read_bytes())
    return cache.link(REPO, COMMIT, name, DIGEST)


REFERENCES = ["thinker", "thinker:q4_k_m", REPO, f"https://huggingface.co/{REPO}/resolve/{COMMIT}/Thinker-Q4_K_M.gguf"]


@pytest.mark.parametrize("reference", REFERENCES)
def test_vocabulary_is_found_where_no_model_is_installed(library: Library, chatml_model: Path, reference: str) -> None:
    path = store(library.vocabulary_cache, chatml_model)
    found = library.resolve_vocabulary(reference)
    assert (found.path, found.reference, found.is_vocabulary) == (path, "thinker:Q4_K_M", True)
    assert library.models() == []
    with pytest.raises(ModelNotFound, match=r"is not downloaded"):
        library.resolve(reference)
    whole = store(library.cache, chatml_model)
    installed = library.resolve_vocabulary(reference)
    assert (installed.path, installed.is_vocabulary) == (whole, False)
    assert library.identity(installed) == library.identity(found) == f"{DIGEST} {chatml_model.stat().st_size}"


def test_vocabulary_missing_has_a_hint_to_pull_it(library: Library) -> None:
    with pytest.raises(ModelNotFound) as caught:
        library.resolve_vocabulary("thinker:Q4_K_M")
    command = "cerebrum pull --vocabulary thinker:Q4_K_M  (or the whole model: cerebrum pull thinker:Q4_K_M)"
    assert (caught.value.message, caught.value.hint) == ("thinker:Q4_K_M is not downloaded", command)
    with pytest.raises(ModelNotFound) as caught:
        library.resolve_vocabulary("packed")
    assert caught.value.hint == "cerebrum pull packed"
    with pytest.raises(ModelNotFound) as caught:
        library.resolve_vocabulary(None)
    assert caught.value.hint == "name the model that the server runs: -m MODEL"


def test_vocabulary_file_is_no_model_by_its_path(library: Library, chatml_model: Path, tmp_path: Path) -> None:
    path = store(library.vocabulary_cache, chatml_model)
    link = tmp_path / "link.gguf"
    os.symlink(path, link)
    for each in (path, path.resolve(), link):
        with pytest.raises(ModelFileError, match="only a vocabulary, without weights") as caught:
            library.model_at(each)
        assert caught.value.hint == "cerebrum pull thinker:Q4_K_M"
