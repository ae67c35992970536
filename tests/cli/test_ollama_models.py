"""Models of Ollama: found, registered in place, and missed when Ollama has deleted them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CommandLine, assert_error
from ollama_store import put_layer

Put = Callable[..., Path]


@pytest.fixture
def ollama(new_user: CommandLine, chatml_model: Path) -> Put:
    """A function that puts a model into Ollama's store, under a name such as `library/small/latest`."""
    return lambda name, model=chatml_model, host="registry.ollama.ai", store=new_user.home / ".ollama/models": (
        put_layer(store, f"{host}/{name}", model)
    )


def found(user: CommandLine, **variables: str) -> dict[str, str | None]:
    """Error of each found model by its reference."""
    return {row["reference"]: row["error"] for row in user.run("list", "--found", "--json", env=variables).object}


def test_list_found_shows_the_models_of_ollama(new_user: CommandLine, ollama: Put, tmp_path: Path) -> None:
    ollama("library/small/latest")
    ollama("library/small/8b")
    ollama("someone/other/latest")
    ollama("unsloth/Small-GGUF/Q4_K_M", host="hf.co")
    assert found(new_user) == dict.fromkeys(
        ("ollama:hf.co/unsloth/Small-GGUF:Q4_K_M", "ollama:small:8b", "ollama:small", "ollama:someone/other")
    )
    ollama("library/elsewhere/latest", store=tmp_path / "moved")
    assert [*found(new_user, OLLAMA_MODELS=str(tmp_path / "moved"))] == ["ollama:elsewhere"]


def test_list_found_without_models_or_with_missing_or_damaged_ones(new_user: CommandLine, ollama: Put) -> None:
    done = new_user.run("list", "--found")
    assert (done.code, done.out, done.err) == (0, "", "no GGUF models found in Ollama\n")
    blob = ollama("library/small/latest")
    blob.unlink()
    assert found(new_user) == {"ollama:small": f"{blob}: file not found"}
    assert_error(new_user.run("pull", "ollama:small"), 3, f"{blob}: file not found")
    blob.write_bytes(b"GGUF")
    (new_user.home / ".ollama/models/manifests/registry.ollama.ai/library/small/broken").write_text("[")
    [error] = found(new_user).values()
    assert error and str(blob) in error


def test_ollama_store_that_cannot_be_read_is_not_empty(new_user: CommandLine, ollama: Put) -> None:
    ollama("library/small/latest")
    manifests = new_user.home / ".ollama/models/manifests"
    manifests.rename(manifests.with_name("elsewhere"))
    manifests.symlink_to(manifests.name)  # not even root can read a link to itself
    problem, hint = f"cannot read {manifests}: too many levels of symbolic links", "check its permissions"
    done = new_user.run("list", "--found")
    assert f"note: {problem}\n      {hint}" in done.err and "no GGUF models found" not in done.err
    assert_error(new_user.run("pull", "ollama:small"), 3, problem, hint)


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
def test_pull_again_gets_what_ollama_has_pulled_since(new_user: CommandLine, ollama: Put, mistral_model: Path) -> None:
    old = ollama("library/small/latest")
    assert new_user.run("pull", "ollama:small").code == 0
    new = ollama("library/small/latest", mistral_model)
    old.unlink()
    done = new_user.run("ask", "-m", "ollama:small", "Hi")
    assert_error(done, 3, f"{old} no longer exists", "pull it again")
    [row] = new_user.run("list", "--json").object
    assert row["error"] == f"{old}: file not found; pull it again, or remove it: cerebrum rm ollama:small"
    assert new_user.run("pull", "ollama:small").code == 0
    [row] = new_user.run("list", "--json").object
    assert row["path"] == str(new)


@pytest.mark.slow
def test_pull_refuses_a_damaged_blob(new_user: CommandLine, ollama: Put) -> None:
    blob = ollama("library/small/latest")
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert_error(new_user.run("pull", "ollama:small"), 1, "ollama:small is damaged", "ollama pull small")
    assert new_user.run("list", "--json").object == []
    assert_error(new_user.run("pull", "ollama:huge"), 3, "Ollama has no GGUF model huge", "list --found")


def test_model_of_ollama_with_an_adapter_is_refused(new_user: CommandLine, chatml_model: Path, tmp_path: Path) -> None:
    store = new_user.home / ".ollama/models"
    adapter = {"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:abc", "size": 5}
    blob = put_layer(store, "registry.ollama.ai/library/tuned/latest", chatml_model, adapter)
    options = f"-m {blob} --lora {store / 'blobs' / 'sha256-abc'}"
    for command in (("pull", "ollama:tuned"), ("ask", "-m", "ollama:tuned", "Why?")):
        assert_error(new_user.run(*command), 2, "ollama:tuned has an adapter", f"name its files: {options}")
