"""Pulling catalog models that are merged: the source models that are chosen and downloaded, the 12B, and weights."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_models import read_model, write_checkpoint
from command_line import assert_error
from hub_user import CATALOGUED, HubUser, named
from merges import FOUR_LAYERS, LAYERS_12B, TWICE, TWO_TIMES, Home, assert_layers_copied, stack
from tiny_models import write_quantized

from cerebrum_cli.core.files import DISK_MARGIN

pytestmark = pytest.mark.slow

REPOSITORY = "someone/Tiny-GGUF"
SIZES = {"Q4_K_M": 1_400_000, "Q8_0": 2_700_000}  # of the source, in the catalog
TINY = f"""
[models.tiny]
title = "Tiny-1.0"
repo_id = "{REPOSITORY}"
file = "Tiny-{{quant}}.gguf"
quantizations = {{Q4_K_M = {SIZES["Q4_K_M"]}, Q8_0 = {SIZES["Q8_0"]}}}
"""


OWN = """
[models.own]
title = "Own-1.0"
recipe = "own.yaml"
file = "Own-{quant}.gguf"
quantizations = {Q4_K_M = 2700000, Q8_0 = 5300000}  # of the merge
"""


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tinies")
    return {
        each: write_quantized(folder / f"Tiny-{each}.gguf", shape=FOUR_LAYERS, encoding=each, seed=seed)
        for seed, each in enumerate(SIZES)
    }


@pytest.fixture
def home(tmp_path: Path, tinies: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.chdir(tmp_path)
    home = Home(tmp_path, tinies["Q4_K_M"])
    home.model.unlink()
    (home.command.config / "models.toml").write_text(TINY + OWN)
    (home.command.config / "own.yaml").write_text(TWICE)
    return home


def pull(home: Home, *arguments: str) -> str:
    done = home.run("pull", "--offline", *arguments)
    assert (done.code, done.out) == (0, ""), done.err
    return done.err.splitlines()[-1]


@pytest.fixture
def tiny_user(hub_user: HubUser, tinies: dict[str, Path]) -> HubUser:
    (hub_user.command.config / "models.toml").write_text(TINY + OWN)
    (hub_user.command.config / "own.yaml").write_text(TWICE)
    hub_user.hub.repository(REPOSITORY, {path.name: path for path in tinies.values()})
    return hub_user


def test_merge_pull_downloads_the_sources_of_a_quantization(tiny_user: HubUser) -> None:
    recommended = tiny_user.run("pull", "--dry-run", "--json", "own").object["chosen"]
    path = tiny_user.command.home / f"data/cerebrum/models/merged/Own-{recommended}.gguf"
    named = tiny_user.pull(f"own:{recommended.lower()}")
    assert named.err.splitlines()[-1] == f"installed own:{recommended}: {path}"
    assert_layers_copied([path], [tiny_user.path(f"Tiny-{recommended}.gguf", REPOSITORY)], TWO_TIMES)
    [merged] = [each for each in tiny_user.listed() if each["source"] == "merge"]
    assert merged["merged_from"] == [f"tiny:{recommended}"]


def test_merge_pull_uses_a_path_without_listing_it(home: Home, tinies: dict[str, Path]) -> None:
    source = Path(shutil.copy(tinies["Q8_0"], home.path / "elsewhere.gguf"))
    (home.command.config / "own.yaml").write_text(stack((str(source), 0, 4)))
    pull(home, "own:Q8_0")
    [made] = home.rows
    assert (made["reference"], made["merged_from"]) == ("own:Q8_0", ["elsewhere"])
    assert_layers_copied([Path(made["path"])], [source], range(4))


def test_merge_pull_checks_the_disk_before_it_downloads(
    home: Home, tinies: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def problem(free: int) -> str:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, free=free))
        return home.run("pull", "--offline", "own:Q4_K_M").err

    need = 2_700_000 + DISK_MARGIN
    assert "not enough disk space" in problem(need - 1)
    assert "tiny:Q4_K_M is not downloaded" in problem(need)


SMALL_12B = "[models.cerebrum-12b]\nquantizations = {Q4_K_M = 19000000}\n"
TWELVE = "Cerebrum-1.0-12.25B-Q4_K_M.gguf"


@pytest.fixture
def seven_user(hub_user: HubUser, tmp_path: Path) -> HubUser:
    (hub_user.command.config / "models.toml").write_text(SMALL_12B)
    hub_user.hub.repository(CATALOGUED, {named("Q4_K_M"): write_quantized(tmp_path / "seven.gguf")})
    return hub_user


def test_merge_12b_pull_downloads_the_7b_and_merges_it(seven_user: HubUser) -> None:
    done = seven_user.pull("cerebrum-12b:Q4_K_M", "-y")
    path = seven_user.command.home / "data/cerebrum/models/merged" / TWELVE
    stages = [*dict.fromkeys(line.split(":")[0] for line in done.err.splitlines())]
    assert (stages, done.err.splitlines()[-1]) == (
        ["note", "installed cerebrum-12b"],
        f"installed cerebrum-12b:Q4_K_M: {path}",
    )
    assert done.err.startswith("note: Cerebrum-1.0-12.25B: No GGUF is published: it is a stack of 56 layers")
    assert_layers_copied([path], [seven_user.path(named("Q4_K_M"))], LAYERS_12B)
    twelve, seven = seven_user.listed()
    assert (twelve["reference"], twelve["path"], twelve["default"]) == ("cerebrum-12b:Q4_K_M", str(path), True)
    assert (twelve["merged_from"], twelve["format"], twelve["error"]) == (["cerebrum-7b:Q4_K_M"], "cerebrum", None)
    assert (seven["reference"], seven["default"]) == ("cerebrum-7b:Q4_K_M", False)
    shown = seven_user.run("show", "cerebrum-12b", "--json").object
    assert (shown["layers"], shown["sha256"]) == (56, hashlib.sha256(path.read_bytes()).hexdigest())
    assert shown["metadata"]["general.name"] == "Cerebrum-1.0-12.25B"
    assert seven_user.ask("-m", "cerebrum-12b") == seven_user.ask() == seven_user.ask("-m", path)

    seven_user.hub.log.clear()
    before = path.stat()
    assert seven_user.pull("cerebrum-12b:q4_k_m").err == f"installed cerebrum-12b:Q4_K_M: {path}\n"
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    removed = seven_user.run("rm", "-y", "cerebrum-12b:Q4_K_M")
    assert removed.err == ("deleted cerebrum-12b:Q4_K_M, freed 19 MB; no default model is set now\n")
    assert (path.parent.exists(), path.exists()) == (True, False)
    assert [row["reference"] for row in seven_user.listed()] == ["cerebrum-7b:Q4_K_M"]
    assert not seven_user.hub.log.requests()


WEIGHTS = "owner/Tiny"
ORDER = [0, 1, 1, 2]
CATALOG = f"""
[models.tiny]
repo_id = "owner/Tiny-GGUF"
file = "Tiny-{{quant}}.gguf"
weights = "{WEIGHTS}"
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
    hub_user.hub.repository(WEIGHTS, {path.name: path for path in folder.iterdir()})
    return hub_user


def test_merge_copies_the_weights_in_a_folder_and_in_a_repository(merger: HubUser, folder: Path) -> None:
    merger.pull(folder, "--type", "BF16", "--name", "plain")
    whole = Path(merger.run("show", "plain", "--json").object["path"])
    for number, arguments in enumerate([("--source", f"tiny={folder}"), ("--from-weights", "-y")]):
        out = merger.command.home / f"{number}.gguf"
        done = merger.run("merge", merger.command.config / "own.yaml", "-o", out, *arguments)
        assert done.code == 0, done.err
        assert_layers_copied([out], [whole], ORDER)
    assert [row["merged_from"] for row in merger.listed()[1:]] == [["weights"], [WEIGHTS]]


def test_merge_of_weights_names_the_types_that_it_uses(merger: HubUser, folder: Path) -> None:
    recipe, out = merger.command.config / "own.yaml", merger.command.home / "out.gguf"
    done = merger.run("merge", recipe, "-o", out, "--source", f"tiny={folder}", "--type", "Q4_K_M", "--dry-run")
    assert "note: 30 tensors cannot be quantized as Q4_K_M prescribes" in done.err
    assert not out.exists()


def test_merge_pull_from_weights_quantizes_once(merger: HubUser) -> None:
    merger.pull("own", "--type", "Q4_K_M", "--from-weights")
    [row] = merger.listed()
    assert (row["reference"], row["merged_from"], row["format"]) == ("own:Q4_K_M", [WEIGHTS], "chatml")
    assert row["quantization"] == "Q4_K_M"
    assert merger.ask("-m", "own")


def test_merge_from_weights_reports_models_without_them(merger: HubUser) -> None:
    (merger.command.config / "own.yaml").write_text(stack(("starter", 0, 1)))
    assert_error(merger.run("pull", "own:Q4_K_M", "--from-weights"), 1, "no safetensors of starter are known")
    options = ("own", "-o", "x.gguf", "--from-weights", "--dry-run")
    assert_error(merger.run("merge", *options), 2, "--dry-run and --from-weights")
