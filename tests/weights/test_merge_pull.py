"""Pulling catalog models that are merged: the source models that are chosen and downloaded, the 12B, and weights."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_models import read_model, write_checkpoint
from command_line import assert_error
from hub_user import CATALOGUED, HubUser, named
from merges import FOUR_LAYERS, LAYERS_12B, TWICE, TWO_TIMES, assert_layers_copied, stack
from tiny_models import write_quantized

from cerebrum_cli.core.files import DISK_MARGIN

pytestmark = pytest.mark.slow

REPOSITORY, WEIGHTS = "someone/Tiny-GGUF", "owner/Tiny"
OVERLAP, ORDER = stack(("tiny", 0, 2), ("tiny", 1, 3)), [0, 1, 1, 2]
CATALOG = f"""
[models.tiny]
title = "Tiny-1.0"
repo_id = "{REPOSITORY}"
file = "Tiny-{{quant}}.gguf"
quantizations = {{Q4_K_M = 1_400_000, Q8_0 = 2_700_000}}
weights = "{WEIGHTS}"
format = "chatml"

[models.own]
title = "Own-1.0"
recipe = "own.yaml"
file = "Own-{{quant}}.gguf"
quantizations = {{Q4_K_M = 2_700_000, Q8_0 = 5_300_000}}

[models.cerebrum-12b]
quantizations = {{Q4_K_M = 19_000_000}}
"""


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tinies")
    return {
        each: write_quantized(folder / f"Tiny-{each}.gguf", shape=FOUR_LAYERS, encoding=each, seed=seed)
        for seed, each in enumerate(("Q4_K_M", "Q8_0"))
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "weights", read_model("mistral"))


@pytest.fixture
def merger(hub_user: HubUser, tinies: dict[str, Path], folder: Path, seven: Path) -> HubUser:
    """A user with the recipe of a model of the catalog, whose source is on the Hub; so is that of the 12B."""
    (hub_user.command.config / "models.toml").write_text(CATALOG)
    (hub_user.command.config / "own.yaml").write_text(TWICE)
    hub_user.hub.repository(REPOSITORY, {path.name: path for path in tinies.values()})
    hub_user.hub.repository(WEIGHTS, {path.name: path for path in folder.iterdir()})
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): seven})
    return hub_user


def recipe(merger: HubUser, text: str = OVERLAP) -> Path:
    path = merger.command.config / "own.yaml"
    path.write_text(text)
    return path


def merged_path(merger: HubUser, file: str) -> Path:
    return merger.command.home / "data/cerebrum/models/merged" / file


def test_merge_pull_downloads_the_sources_of_a_quantization(merger: HubUser) -> None:
    recommended = merger.run("pull", "--dry-run", "--json", "own").object["chosen"]
    path = merged_path(merger, f"Own-{recommended}.gguf")
    done = merger.pull(f"own:{recommended.lower()}")
    assert done.err.splitlines()[-1] == f"installed own:{recommended}: {path}"
    assert_layers_copied([path], [merger.path(f"Tiny-{recommended}.gguf", REPOSITORY)], TWO_TIMES)
    [merged] = [each for each in merger.listed() if each["source"] == "merge"]
    assert merged["merged_from"] == [f"tiny:{recommended}"]


def test_merge_pull_uses_a_path_without_listing_it(merger: HubUser, tinies: dict[str, Path], tmp_path: Path) -> None:
    source = Path(shutil.copy(tinies["Q8_0"], tmp_path / "elsewhere.gguf"))
    recipe(merger, stack((str(source), 0, 4)))
    merger.pull("--offline", "own:Q8_0")
    [made] = merger.listed()
    assert (made["reference"], made["merged_from"]) == ("own:Q8_0", ["elsewhere"])
    assert_layers_copied([Path(made["path"])], [source], range(4))


def test_merge_pull_checks_the_disk_before_it_downloads(merger: HubUser, monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(free: int) -> str:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, free=free))
        return merger.run("pull", "--offline", "own:Q4_K_M").err

    need = 2_700_000 + DISK_MARGIN
    assert "not enough disk space" in problem(need - 1)
    assert "tiny:Q4_K_M is not downloaded" in problem(need)


def test_merge_12b_pull_downloads_the_7b_and_merges_it(merger: HubUser) -> None:
    done = merger.pull("cerebrum-12b:Q4_K_M", "-y")
    path = merged_path(merger, "Cerebrum-1.0-12.25B-Q4_K_M.gguf")
    *notes, last = done.err.splitlines()
    assert last == f"installed cerebrum-12b:Q4_K_M: {path}"
    assert notes[0].startswith("note: Cerebrum-1.0-12.25B: No GGUF is published: it is a stack of 56 layers")
    assert all(line.startswith("note: ") for line in notes)
    assert_layers_copied([path], [merger.path(named("Q4_K_M"))], LAYERS_12B)
    twelve, seven = merger.listed()
    assert (twelve["reference"], twelve["path"], twelve["default"]) == ("cerebrum-12b:Q4_K_M", str(path), True)
    assert (twelve["merged_from"], twelve["format"], twelve["error"]) == (["cerebrum-7b:Q4_K_M"], "cerebrum", None)
    assert (seven["reference"], seven["default"]) == ("cerebrum-7b:Q4_K_M", False)
    shown = merger.run("show", "cerebrum-12b", "--json").object
    assert (shown["layers"], shown["sha256"]) == (56, hashlib.sha256(path.read_bytes()).hexdigest())
    assert shown["metadata"]["general.name"] == "Cerebrum-1.0-12.25B"
    assert merger.ask("-m", "cerebrum-12b") == merger.ask() == merger.ask("-m", path)

    merger.hub.log.clear()
    before = path.stat()
    assert merger.pull("cerebrum-12b:q4_k_m").err == f"installed cerebrum-12b:Q4_K_M: {path}\n"
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    removed = merger.run("rm", "-y", "cerebrum-12b:Q4_K_M")
    assert removed.err == ("deleted cerebrum-12b:Q4_K_M, freed 19 MB; no default model is set now\n")
    assert (path.parent.exists(), path.exists()) == (True, False)
    assert [row["reference"] for row in merger.listed()] == ["cerebrum-7b:Q4_K_M"]
    assert not merger.hub.log.requests()


def test_merge_copies_the_weights_in_a_folder_and_in_a_repository(merger: HubUser, folder: Path) -> None:
    merger.pull(folder, "--type", "BF16", "--name", "plain")
    whole = Path(merger.run("show", "plain", "--json").object["path"])
    for number, arguments in enumerate([("--source", f"tiny={folder}"), ("--from-weights", "-y")]):
        out = merger.command.home / f"{number}.gguf"
        done = merger.run("merge", recipe(merger), "-o", out, *arguments)
        assert done.code == 0, done.err
        assert_layers_copied([out], [whole], ORDER)
    assert [row["merged_from"] for row in merger.listed()[1:]] == [["weights"], [WEIGHTS]]


def test_merge_of_weights_names_the_types_that_it_uses(merger: HubUser, folder: Path) -> None:
    out = merger.command.home / "out.gguf"
    options = ("-o", out, "--source", f"tiny={folder}", "--type", "Q4_K_M", "--dry-run")
    done = merger.run("merge", recipe(merger), *options)
    assert "note: 30 tensors cannot be quantized as Q4_K_M prescribes" in done.err
    assert not out.exists()


def test_merge_pull_from_weights_quantizes_once(merger: HubUser) -> None:
    recipe(merger)
    merger.pull("own", "--type", "Q4_K_M", "--from-weights")
    [row] = merger.listed()
    assert (row["reference"], row["merged_from"], row["format"]) == ("own:Q4_K_M", [WEIGHTS], "chatml")
    assert row["quantization"] == "Q4_K_M"
    assert merger.ask("-m", "own")


def test_merge_from_weights_reports_models_without_them(merger: HubUser) -> None:
    recipe(merger, stack(("starter", 0, 1)))
    assert_error(merger.run("pull", "own:Q4_K_M", "--from-weights"), 1, "no safetensors of starter are known")
    options = ("own", "-o", "x.gguf", "--from-weights", "--dry-run")
    assert_error(merger.run("merge", *options), 2, "--dry-run and --from-weights")
