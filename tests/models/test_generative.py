"""Models that generate no text are refused before they are loaded: by their header, and by what llama.cpp knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import CommandLine
from scripted_command import install
from tiny_models import write_vocabulary
from vocabularies import open_vocabulary

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.header import _ARCHITECTURES, read_header, require_generative, unsupported_kind

EMBEDS = "which computes embeddings and generates no text"
BERT_HINT = " hint: use a decoder-only model; cerebrum list --available shows some\n"


@pytest.mark.parametrize(
    ("architecture", "keys", "kind"),
    [
        ("llama", {}, None),
        ("llama", {"attention__causal": True, "pooling_type": 0}, None),
        ("bert", {}, f"an encoder-only model, {EMBEDS}"),
        ("qwen2", {"attention__causal": False}, f"an encoder-only model, {EMBEDS}"),
        ("qwen3", {"pooling_type": 3}, f"an embedding model, {EMBEDS}"),
        ("qwen3", {"pooling_type": 4}, "a reranker, which scores texts and generates none"),
        ("t5", {}, "an encoder-decoder model, which is not supported"),
        ("llada", {"attention__causal": False}, "a diffusion model, which is not supported"),
    ],
)
def test_generative_kind_is_read_from_the_header(
    tmp_path: Path, architecture: str, keys: dict[str, int | bool], kind: str | None
) -> None:
    path = write_vocabulary(tmp_path / "model.gguf", architecture, **keys)
    assert unsupported_kind(read_header(path)) == kind
    if kind is None:
        require_generative(path, read_header(path))
        return
    with pytest.raises(ModelFileError) as caught:
        require_generative(path, read_header(path))
    assert caught.value.message == f"{path}: {kind} (architecture {architecture})"


@pytest.mark.parametrize("architecture", ["llama", *_ARCHITECTURES])
def test_generative_table_agrees_with_llama(tmp_path: Path, architecture: str) -> None:
    """What llama.cpp knows of an architecture is refused after loading; it does not know which are encoder-only."""
    path, kind = write_vocabulary(tmp_path / "model.gguf", architecture), _ARCHITECTURES.get(architecture, "")
    known = "diffusion" if "diffusion" in kind else "encoder" if architecture.startswith("t5") else None
    if known is None:
        with open_vocabulary(path) as backend:
            assert backend.size == 275
        return
    with pytest.raises(ModelFileError, match=known):
        open_vocabulary(path).__enter__()


@pytest.mark.slow
def test_commands_refuse_an_encoder_only_model(user: CommandLine) -> None:
    path = write_vocabulary(user.home / "bert.gguf", "bert")
    (user.home / "rows.txt").write_text("hi\n")
    pulled = user.run("pull", path)
    kind = f"an encoder-only model, {EMBEDS}"
    notice = f"bert.gguf is {kind} (architecture bert)"
    assert (pulled.code, notice in pulled.err) == (0, True), pulled.err
    for arguments in (
        ("ask", "-m", "bert", "hi"),
        ("ask", "-m", path, "--dry-run", "hi"),
        ("chat", "-m", "bert", "hi"),
        ("batch", "-m", "bert", "rows.txt", "-o", "out.jsonl"),
        ("tune", "bert"),
    ):
        done = user.run(*arguments)
        assert (done.code, done.err) == (1, f"error: {path}: {kind} (architecture bert)\n{BERT_HINT}"), arguments
    assert not list(user.home.glob("out.jsonl*"))
    assert user.run("show", "bert", "--json").object["unsupported"] == kind
    assert f"unsupported         {kind}\n" in user.run("show", "bert").out
    assert user.run("show", "small", "--json").object["unsupported"] is None


@pytest.mark.slow
def test_pull_does_not_make_an_encoder_only_model_the_default(new_user: CommandLine, chatml_model: Path) -> None:
    new_user.run("pull", write_vocabulary(new_user.home / "bert.gguf", "bert"))
    assert [row["default"] for row in json.loads(new_user.run("list", "--json").out)] == [False]
    install(new_user.home, chatml_model, "small")
    assert [row["default"] for row in json.loads(new_user.run("list", "--json").out)] == [False, True]
