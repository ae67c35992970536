"""Models in the stores of Ollama and LM Studio: found, registered in place, and missed when the other tool is done."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine, assert_error
from gguf import GGUFWriter
from gguf_files import write_file
from ollama_store import put_layer
from tiny_models import write_vocabulary

Put = Callable[..., Path]


@pytest.fixture
def ollama(new_user: CommandLine, chatml_model: Path) -> Put:
    """A function that puts a model into Ollama's store, under a name such as `library/small/latest`."""
    return lambda name, model=chatml_model, host="registry.ollama.ai", store=new_user.home / ".ollama/models": (
        put_layer(store, f"{host}/{name}", model)
    )


def put_file(directory: Path, model: Path) -> Path:
    directory.mkdir(parents=True)
    return Path(shutil.copy(model, directory / f"{directory.name}-Q8_0.gguf"))


def write_with_tensor(path: Path, name: str) -> Path:
    """Write a model of one layer, with another tensor in its file."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor(name, np.zeros(32, np.float32))
    write_file(writer)
    return path


def found(user: CommandLine, **variables: str) -> dict[str, str | None]:
    """Error of each found model by its reference."""
    return {row["reference"]: row["error"] for row in user.run("list", "--found", "--json", env=variables).object}


def test_list_found_shows_the_models_of_ollama_and_lm_studio(
    new_user: CommandLine, ollama: Put, chatml_model: Path, tmp_path: Path
) -> None:
    ollama("library/small/latest")
    ollama("library/small/8b")
    ollama("someone/other/latest")
    ollama("unsloth/Small-GGUF/Q4_K_M", host="hf.co")
    put_file(new_user.home / ".lmstudio/models/someone/Tiny-GGUF", chatml_model)
    shutil.copy(chatml_model, new_user.home / ".lmstudio/models/someone/Tiny-GGUF/mmproj-F16.gguf")
    assert found(new_user) == dict.fromkeys(
        (
            "ollama:hf.co/unsloth/Small-GGUF:Q4_K_M",
            "ollama:small:8b",
            "ollama:small",
            "ollama:someone/other",
            "lmstudio:someone/Tiny-GGUF:Q8_0",
        )
    )
    ollama("library/elsewhere/latest", store=tmp_path / "moved")
    put_file(tmp_path / "moved/someone/Other-GGUF", chatml_model)
    (new_user.home / ".lmstudio/settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "moved")}))
    moved = found(new_user, OLLAMA_MODELS=str(tmp_path / "moved"))
    assert [*moved] == ["ollama:elsewhere", "lmstudio:someone/Other-GGUF:Q8_0"]


def test_list_found_without_stores_or_with_damaged_ones(new_user: CommandLine, ollama: Put) -> None:
    done = new_user.run("list", "--found")
    assert (done.code, done.out, done.err) == (0, "", "no GGUF models found in Ollama or LM Studio\n")
    blob = ollama("library/small/latest")
    blob.write_bytes(b"GGUF")
    (new_user.home / ".ollama/models/manifests/registry.ollama.ai/library/small/broken").write_text("[")
    [error] = found(new_user).values()
    assert error and str(blob) in error


def assert_unreadable(user: CommandLine, directory: Path, reason: str) -> None:
    problem, hint = f"cannot read {directory}: {reason}", "check its permissions"
    done = user.run("list", "--found")
    assert f"note: {problem}\n      {hint}" in done.err and "no GGUF models found" not in done.err
    assert_error(user.run("pull", "ollama:small"), 3, problem, hint)


def test_ollama_store_that_cannot_be_read_is_not_empty(new_user: CommandLine, ollama: Put) -> None:
    ollama("library/small/latest")
    manifests = new_user.home / ".ollama/models/manifests"
    manifests.rename(manifests.with_name("elsewhere"))
    manifests.symlink_to(manifests.name)  # not even root can read a link to itself
    assert_unreadable(new_user, manifests, "too many levels of symbolic links")


def test_model_of_ollama_without_its_blob_is_said_to_be_missing(new_user: CommandLine, ollama: Put) -> None:
    blob = ollama("library/small/latest")
    blob.unlink()
    [(reference, error)] = found(new_user).items()
    assert (reference, error) == ("ollama:small", f"{blob}: file not found")
    done = new_user.run("pull", "ollama:small")
    assert_error(done, 2, f"{blob}: file not found")


@pytest.mark.slow
def test_pull_registers_a_model_of_ollama_in_place(new_user: CommandLine, ollama: Put) -> None:
    blob = ollama("library/small/latest")
    assert_error(new_user.run("ask", "-m", "ollama:small", "Hi"), 3, "cerebrum pull ollama:small")
    done = new_user.run("pull", "ollama:small:latest")
    assert (done.code, done.err.splitlines()[-1]) == (0, f"installed ollama:small: {blob}")
    assert not blob.is_symlink() and not (new_user.home / "hf").exists()
    assert new_user.run("ask", "-q", "-n", "2", "-m", "ollama:small:latest", "Hi").code == 0
    [row] = new_user.run("list", "--json").object
    assert (row["name"], row["source"], row["path"], row["default"]) == ("ollama:small", "ollama", str(blob), True)
    [row] = new_user.run("list", "--found", "--json").object
    assert row["name"] == "ollama:small"


@pytest.mark.slow
def test_pull_registers_a_model_of_lm_studio_by_its_short_name(new_user: CommandLine, chatml_model: Path) -> None:
    file = put_file(new_user.home / ".lmstudio/models/someone/Tiny-GGUF", chatml_model)
    for reference in ("lmstudio:tiny", "lmstudio:Tiny-GGUF:q8_0", "lmstudio:someone/Tiny-GGUF"):
        assert new_user.run("pull", reference).err.endswith(f"installed lmstudio:someone/Tiny-GGUF:Q8_0: {file}\n")
        assert new_user.run("show", reference).code == 0
    put_file(new_user.home / ".lmstudio/models/another/Tiny-GGUF", chatml_model)
    done = new_user.run("pull", "lmstudio:tiny")
    assert_error(done, 3, "LM Studio has several models that match tiny", "lmstudio:another/Tiny-GGUF:Q8_0")
    assert_error(new_user.run("pull", "lmstudio:huge"), 3, "LM Studio has no GGUF model huge", "list --found")


@pytest.mark.slow
def test_pull_again_gets_what_ollama_has_pulled_since(new_user: CommandLine, ollama: Put, mistral_model: Path) -> None:
    old = ollama("library/small/latest")
    assert new_user.run("pull", "ollama:small").code == 0
    new = ollama("library/small/latest", mistral_model)
    old.unlink()
    done = new_user.run("ask", "-m", "ollama:small", "Hi")
    assert_error(done, 3, f"{old} no longer exists", "pull it again")
    [row] = new_user.run("list", "--json").object
    assert row["error"] == f"{old}: file not found"
    assert new_user.run("pull", "ollama:small").code == 0
    [row] = new_user.run("list", "--json").object
    assert row["path"] == str(new)


@pytest.mark.slow
def test_pull_refuses_a_damaged_blob_and_what_only_ollama_loads(
    new_user: CommandLine, ollama: Put, tmp_path: Path
) -> None:
    blob = ollama("library/small/latest")
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert_error(new_user.run("pull", "ollama:small"), 1, "ollama:small is damaged")
    own = write_vocabulary(tmp_path / "own.gguf", "gptoss")
    ollama("library/gpt-oss/20b", own)
    vision = write_with_tensor(tmp_path / "vision.gguf", "v.patch_embd.weight")
    ollama("library/seeing/1b", vision)
    ollama("library/ministral-3/8b", write_vocabulary(tmp_path / "mistral3.gguf", "mistral3", rope__scaling_beta=1))
    refused = "is in a format that only Ollama can load"
    assert_error(new_user.run("pull", "ollama:gpt-oss:20b"), 1, refused, "cerebrum search gpt-oss")
    assert_error(new_user.run("pull", "ollama:ministral-3:8b"), 1, refused, "cerebrum search ministral-3")
    assert_error(new_user.run("pull", "ollama:seeing:1b"), 1, refused, "cerebrum search seeing")
    assert found(new_user)["ollama:gpt-oss:20b"] == "only Ollama can load it"
    assert new_user.run("list", "--json").object == []
