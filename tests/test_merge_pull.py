"""Rows of a user's own that have a recipe, pulled: of which models they are merged, and what is downloaded for it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from hub_user import HubUser, hub_user
from scripted_command import runtime_for
from test_merge import Home
from test_merge_files import assert_copied, metadata, stack, stored
from tiny_models import Shape, write_quantized

from cerebrum_cli.application.merging.merge import DISK_RESERVE, Merger
from cerebrum_cli.application.merging.recipes import catalogue_recipe
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.application.pulling.building import CatalogueMerge
from cerebrum_cli.catalogue.cache import Cache
from cerebrum_cli.catalogue.reference import Reference
from cerebrum_cli.core.errors import MergeError, ModelNotFound
from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.terminal.streams import Streams

SMALL = Shape(layers=4, width=256, heads=8, kv_heads=2, ffn=512)
REPOSITORY = "someone/Tiny-GGUF"
SIZES = {"Q4_K_M": 1_400_000, "Q8_0": 2_700_000}  # of the source, as the catalogue states them
KNOWN = "{Q4_K_M = 2700000, Q8_0 = 5300000}"  # of the merge
TINY = f"""
[models.tiny]
system = "Tiny-1.0"
repo_id = "{REPOSITORY}"
file = "Tiny-{{quant}}.gguf"
quantizations = {{Q4_K_M = {SIZES["Q4_K_M"]}, Q8_0 = {SIZES["Q8_0"]}}}
"""
TWICE = stack(("tiny", 0, 4), ("tiny", 0, 4))


def row(name: str, recipe: str, quantizations: str = KNOWN) -> str:
    """Return a row of the catalogue that is merged."""
    known = f"quantizations = {quantizations}\n" if quantizations else ""
    file = f"{name.capitalize()}-{{quant}}.gguf"
    return f'[models.{name}]\nsystem = "{name}"\nrecipe = "{recipe}"\nfile = "{file}"\n{known}\n'


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model of four layers in two quantisations."""
    folder = tmp_path_factory.mktemp("tinies")
    return {
        each: write_quantized(folder / f"Tiny-{each}.gguf", shape=SMALL, encoding=each, seed=seed)
        for seed, each in enumerate(SIZES)
    }


@pytest.fixture
def home(tmp_path: Path, tinies: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return the home of somebody who is offline, whose catalogue has `tiny`, and `own`, which is it twice."""
    monkeypatch.chdir(tmp_path)
    home = Home(tmp_path, tinies["Q4_K_M"])
    home.model.unlink()
    described(home, row("own", "own.yaml"))
    (home.command.config / "own.yaml").write_text(TWICE)
    return home


def described(home: Home, rows: str) -> None:
    """Have other rows in the catalogue than `own`."""
    (home.command.config / "models.toml").write_text(TINY + rows)


def bring(home: Home, source: Path) -> Path:
    """Have a model here in a file, and return that."""
    path = Path(shutil.copy(source, home.path))
    assert home.run("pull", path, "--offline").code == 0
    return path


def pulled(home: Home, *arguments: str) -> str:
    """Pull offline, and return the last line that is said."""
    done = home.run("pull", "--offline", *arguments)
    assert (done.code, done.out) == (0, ""), done.err
    return done.err.splitlines()[-1]


def place(home: Home, file: str) -> Path:
    """Return where a merge goes that is pulled."""
    return home.path / "data/cerebrum/models/merged" / file


@pytest.fixture
def user(tmp_path: Path, tinies: dict[str, Path]) -> Iterator[HubUser]:
    """Return somebody before a Hub that has `tiny`, with the same catalogue."""
    with hub_user(tmp_path) as each:
        (each.command.config / "models.toml").write_text(TINY + row("own", "own.yaml"))
        (each.command.config / "own.yaml").write_text(TWICE)
        each.hub.repository(REPOSITORY, {path.name: path for path in tinies.values()})
        yield each


def test_merge_pull_prefers_installed_source_models(user: HubUser) -> None:
    recommended = user.run("pull", "--dry-run", "--json", "own").object["chosen"]
    [other] = SIZES.keys() - {recommended}
    user.pull(f"tiny:{other}")
    user.hub.log.clear()
    done = user.pull("own")
    path = user.command.home / f"data/cerebrum/models/merged/Own-{other}.gguf"
    assert done.err.splitlines()[-1] == f"installed own:{other}: {path}"
    assert not user.hub.log.requests("cdn")
    assert_copied(stored([path]), stored([user.path(f"Tiny-{other}.gguf", REPOSITORY)]), [0, 1, 2, 3] * 2)

    named = user.pull(f"own:{recommended.lower()}")
    assert named.err.splitlines()[-1] == f"installed own:{recommended}: {path.with_name(f'Own-{recommended}.gguf')}"
    assert len(user.downloads()) == 1
    assert {each["reference"]: each["merged_from"] for each in user.listed() if each["source"] == "merge"} == {
        f"own:{each}": [f"tiny:{each}"] for each in SIZES
    }


@pytest.mark.parametrize("quantization", SIZES)
def test_merge_pull_offline_uses_the_installed_merge(quantization: str, home: Home, tinies: dict[str, Path]) -> None:
    bring(home, tinies[quantization])
    path = place(home, f"Own-{quantization}.gguf")
    assert pulled(home, f"own:{quantization}") == f"installed own:{quantization}: {path}"
    for each in SIZES.keys() - {quantization}:
        bring(home, tinies[each])
    before = path.stat()
    done = home.run("pull", "--offline", "own")
    assert (done.code, done.err) == (0, f"installed own:{quantization}: {path}\n")
    assert (path.stat().st_mtime_ns, [each.name for each in path.parent.glob("*.gguf")]) == (
        before.st_mtime_ns,
        [path.name],
    )


@pytest.mark.parametrize("quantization", SIZES)
def test_merge_pull_merges_the_named_quantization(quantization: str, home: Home, tinies: dict[str, Path]) -> None:
    sources = {each: bring(home, path) for each, path in tinies.items()}
    path = place(home, f"Own-{quantization}.gguf")
    assert pulled(home, f"own:{quantization.lower()}") == f"installed own:{quantization}: {path}"
    assert_copied(stored([path]), stored([sources[quantization]]), [0, 1, 2, 3] * 2)


def test_merge_pull_offline_reports_missing_source_models(home: Home, tinies: dict[str, Path]) -> None:
    bring(home, tinies["Q8_0"])
    done = home.run("pull", "--offline", "own:Q4_K_M")
    said = "error: tiny:Q4_K_M is not downloaded, and the network is disabled"
    assert (done.code, done.out, done.err.splitlines()[0]) == (3, "", said)
    assert not list((home.path / "data").rglob("*.gguf*"))


@pytest.mark.parametrize("quantization", SIZES)
def test_merge_pull_takes_the_quantization_of_its_source(
    quantization: str, home: Home, tinies: dict[str, Path]
) -> None:
    described(home, row("own", "own.yaml", ""))
    bring(home, tinies[quantization])
    path = place(home, f"Own-{quantization}.gguf")
    assert pulled(home, "own") == f"installed own:{quantization}: {path}"
    [made] = [each for each in home.rows if each["source"] == "merge"]
    assert (made["quantization"], made["error"]) == (quantization, None)


@pytest.mark.parametrize("quantizations", [KNOWN, ""])
@pytest.mark.parametrize("rows", [["own"], ["own", "other"]], ids=["itself", "each other"])
def test_merge_pull_reports_circular_recipes(rows: list[str], quantizations: str, home: Home) -> None:
    described(home, "".join(row(each, f"{each}.yaml", quantizations) for each in rows))
    for each, used in zip(rows, [*rows[1:], rows[0]], strict=True):
        (home.command.config / f"{each}.yaml").write_text(stack((used, 0, 4)))
    done = home.run("pull", "--offline", "-y", "own")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: own: circular recipe\n  try: fix its row in models.toml\n"
    assert not list((home.path / "data").rglob("*.gguf*"))


def test_merge_pull_uses_a_path_without_listing_it(home: Home, tinies: dict[str, Path]) -> None:
    source = Path(shutil.copy(tinies["Q8_0"], home.path / "elsewhere.gguf"))
    (home.command.config / "own.yaml").write_text(stack((str(source), 0, 4)))
    pulled(home, "own:Q8_0")
    [made] = home.rows
    assert (made["reference"], made["merged_from"]) == ("own:Q8_0", ["elsewhere.gguf"])
    assert_copied(stored([Path(made["path"])]), stored([source]), range(4))


def test_a_disk_must_hold_what_is_downloaded_too(home: Home, tinies: dict[str, Path]) -> None:
    need = 2_700_000 + SIZES["Q4_K_M"] + DISK_RESERVE
    assert [begins(home, free) for free in (need - 1, need)] == [False, True]
    bring(home, tinies["Q4_K_M"])
    need -= SIZES["Q4_K_M"]
    assert [begins(home, free) for free in (need - 1, need)] == [False, True]


def begins(home: Home, free: int) -> bool:
    """Return whether models are brought here where so many bytes of the disk are free."""
    brought: list[str] = []

    def bring_none(reference: Reference) -> Model:
        brought.append(str(reference))
        raise ModelNotFound(f"{reference} is not there", "")

    with pytest.raises((MergeError, ModelNotFound)) as caught:
        own(home, free).build("Q4_K_M", None, bring_none)
    assert ("not enough disk space" in str(caught.value)) == (not brought)
    return brought == ["tiny:Q4_K_M"]


def own(home: Home, free: int) -> CatalogueMerge:
    """Return how `own` is merged on a disk with so many free bytes."""
    runtime = runtime_for({}, home.path, Streams(StringIO(), StringIO(), None, False, False, False))
    library = runtime.library
    library.given_cache = Cache(home.path / "hub")
    spec = library.spec_named("own")
    assert spec
    return CatalogueMerge(library, Merger(library, LlamaCodec, lambda path: free), spec, catalogue_recipe(spec))


def test_merge_pull_is_deleted_behind_a_link(home: Home, tinies: dict[str, Path]) -> None:
    (home.path / "elsewhere").mkdir()
    (home.path / "data").symlink_to("elsewhere")
    bring(home, tinies["Q4_K_M"])
    pulled(home, "own:Q4_K_M")
    assert [path.name for path in (home.path / "elsewhere").rglob("*.gguf")] == ["Own-Q4_K_M.gguf"]
    assert home.run("rm", "-y", "own").err == "deleted own:Q4_K_M, freed 3 MB\n"
    assert not list((home.path / "elsewhere").rglob("*.gguf"))


def test_merge_pull_sets_a_missing_file_type(user: HubUser, tmp_path: Path) -> None:
    silent = write_quantized(tmp_path / "silent.gguf", shape=SMALL)
    silent.write_bytes(silent.read_bytes().replace(b"general.file_type", b"general.file_tipo"))
    user.hub.repositories[REPOSITORY].commit({"Tiny-Q4_K_M.gguf": silent})
    path = user.command.home / "data/cerebrum/models/merged/Own-Q4_K_M.gguf"
    said = f"installed own:Q4_K_M: {path}"
    assert user.pull("own:Q4_K_M").err.splitlines()[-1] == said
    assert metadata(path)["general.file_type"].endswith((15).to_bytes(4, "little"))
    before = path.stat().st_mtime_ns
    for arguments in (["own:Q4_K_M"], ["own", "--offline"]):
        assert user.pull(*arguments).err == f"{said}\n"
    assert path.stat().st_mtime_ns == before
    [made] = [each for each in user.listed() if each["source"] == "merge"]
    assert (made["reference"], made["quantization"]) == ("own:Q4_K_M", "Q4_K_M")


@pytest.mark.parametrize("quantization", SIZES)
def test_merge_uses_the_quantization_after_a_catalogue_name(
    quantization: str, home: Home, tinies: dict[str, Path]
) -> None:
    sources = {each: bring(home, path) for each, path in tinies.items()}
    done = home.run("merge", f"own:{quantization}", "-o", "x.gguf", "--offline")
    assert done.code == 0, done.err
    assert_copied(stored([home.path / "x.gguf"]), stored([sources[quantization]]), [0, 1, 2, 3] * 2)
