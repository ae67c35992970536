"""Weights in safetensors are merged as they are: those in a folder, and those of catalog models in repositories."""

from pathlib import Path

import pytest
from checkpoint_models import read_model, write_checkpoint
from command_line import assert_error
from hub_user import HubUser
from merges import assert_layers_copied, stack

REPOSITORY = "owner/Tiny"
ORDER = [0, 1, 1, 2]
CATALOG = f"""
[models.tiny]
repo_id = "owner/Tiny-GGUF"
file = "Tiny-{{quant}}.gguf"
weights = "{REPOSITORY}"
format = "chatml"

[models.own]
title = "Own-1.0"
recipe = "own.yaml"
file = "Own-{{quant}}.gguf"
quantizations = {{Q4_K_M = 100_000}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "weights", read_model("mistral"))


@pytest.fixture
def merger(hub_user: HubUser, folder: Path) -> HubUser:
    (hub_user.command.config / "models.toml").write_text(CATALOG)
    (hub_user.command.config / "own.yaml").write_text(stack(("tiny", 0, 2), ("tiny", 1, 3)))
    hub_user.hub.repository(REPOSITORY, {path.name: path for path in folder.iterdir()})
    return hub_user


def test_merge_copies_the_weights_in_a_folder_and_in_a_repository(merger: HubUser, folder: Path) -> None:
    merger.pull(folder, "--type", "BF16", "--name", "plain")
    whole = Path(merger.run("show", "plain", "--json").object["path"])
    for number, arguments in enumerate([("--source", f"tiny={folder}"), ("--from-weights", "-y")]):
        out = merger.command.home / f"{number}.gguf"
        done = merger.run("merge", merger.command.config / "own.yaml", "-o", out, *arguments)
        assert done.code == 0, done.err
        assert_layers_copied([out], [whole], ORDER)
    assert [row["merged_from"] for row in merger.listed()[1:]] == [["weights"], [REPOSITORY]]


def test_merge_of_weights_names_the_types_that_it_uses(merger: HubUser, folder: Path) -> None:
    recipe, out = merger.command.config / "own.yaml", merger.command.home / "out.gguf"
    done = merger.run("merge", recipe, "-o", out, "--source", f"tiny={folder}", "--type", "Q4_K_M", "--dry-run")
    assert "note: 30 tensors cannot be quantized as Q4_K_M prescribes" in done.err
    assert not out.exists()


def test_merge_pull_from_weights_quantizes_once(merger: HubUser) -> None:
    merger.pull("own", "--type", "Q4_K_M", "--from-weights")
    [row] = merger.listed()
    assert (row["reference"], row["merged_from"], row["format"]) == ("own:Q4_K_M", [REPOSITORY], "chatml")
    assert row["quantization"] == "Q4_K_M"
    assert merger.ask("-m", "own")


def test_merge_from_weights_reports_models_without_them(merger: HubUser) -> None:
    (merger.command.config / "own.yaml").write_text(stack(("starter", 0, 1)))
    assert_error(merger.run("pull", "own:Q4_K_M", "--from-weights"), 1, "no safetensors of starter are known")
    options = ("own", "-o", "x.gguf", "--from-weights", "--dry-run")
    assert_error(merger.run("merge", *options), 2, "--dry-run and --from-weights")
