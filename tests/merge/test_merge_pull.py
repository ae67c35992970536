"""Pulling a row of models.toml that has a recipe: the source models that are chosen, downloaded and merged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub_user import HubUser, cleaned
from merges import FOUR_LAYERS, TWICE, TWO_TIMES, Home, assert_layers_copied, metadata_bytes, stack
from scripted_command import runtime_for
from tiny_models import write_quantized

from cerebrum_cli.core.errors import MergeError, ModelNotFound
from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.merge.building import CatalogueMerge
from cerebrum_cli.merge.merge import DISK_RESERVE, Merger
from cerebrum_cli.merge.recipes import catalogue_recipe
from cerebrum_cli.models.cache import Cache
from cerebrum_cli.models.model import Model
from cerebrum_cli.models.reference import Reference

pytestmark = pytest.mark.slow

REPOSITORY = "someone/Tiny-GGUF"
SIZES = {"Q4_K_M": 1_400_000, "Q8_0": 2_700_000}  # of the source, in the catalog
KNOWN = "{Q4_K_M = 2700000, Q8_0 = 5300000}"  # of the merge
TINY = f"""
[models.tiny]
system = "Tiny-1.0"
repo_id = "{REPOSITORY}"
file = "Tiny-{{quant}}.gguf"
quantizations = {{Q4_K_M = {SIZES["Q4_K_M"]}, Q8_0 = {SIZES["Q8_0"]}}}
"""


def row(name: str, recipe: str, quantizations: str = KNOWN) -> str:
    """A catalog row with a recipe."""
    known = f"quantizations = {quantizations}\n" if quantizations else ""
    title = name.capitalize()
    file = f"{title}-{{quant}}.gguf"
    return f'[models.{name}]\nsystem = "{title}-1.0"\nrecipe = "{recipe}"\nfile = "{file}"\n{known}\n'


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of four layers in two quantizations."""
    folder = tmp_path_factory.mktemp("tinies")
    return {
        each: write_quantized(folder / f"Tiny-{each}.gguf", shape=FOUR_LAYERS, encoding=each, seed=seed)
        for seed, each in enumerate(SIZES)
    }


@pytest.fixture
def home(tmp_path: Path, tinies: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home directory whose catalog has `tiny`, and `own`, which stacks it twice."""
    monkeypatch.chdir(tmp_path)
    home = Home(tmp_path, tinies["Q4_K_M"])
    home.model.unlink()
    write_catalogue(home, row("own", "own.yaml"))
    (home.command.config / "own.yaml").write_text(TWICE)
    return home


def write_catalogue(home: Home, rows: str) -> None:
    """Write a catalog of `tiny` and these rows."""
    (home.command.config / "models.toml").write_text(TINY + rows)


def install(home: Home, source: Path) -> Path:
    """Copy a model file into the home directory and register it."""
    path = Path(shutil.copy(source, home.path))
    assert home.run("pull", path, "--offline").code == 0
    return path


def pull(home: Home, *arguments: str) -> str:
    """Pull offline; return the last line on standard error."""
    done = home.run("pull", "--offline", *arguments)
    assert (done.code, done.out) == (0, ""), done.err
    return done.err.splitlines()[-1]


def merged_path(home: Home, file: str) -> Path:
    """Path of a pulled merge."""
    return home.path / "data/cerebrum/models/merged" / file


@pytest.fixture
def tiny_user(hub_user: HubUser, tinies: dict[str, Path]) -> HubUser:
    """A user with a Hub that has `tiny`, and the same catalog."""
    (hub_user.command.config / "models.toml").write_text(TINY + row("own", "own.yaml"))
    (hub_user.command.config / "own.yaml").write_text(TWICE)
    hub_user.hub.repository(REPOSITORY, {path.name: path for path in tinies.values()})
    return hub_user


def test_merge_pull_prefers_installed_source_models(tiny_user: HubUser) -> None:
    recommended = tiny_user.run("pull", "--dry-run", "--json", "own").object["chosen"]
    [other] = SIZES.keys() - {recommended}
    tiny_user.pull(f"tiny:{other}")
    tiny_user.hub.log.clear()
    done = tiny_user.pull("own")
    path = tiny_user.command.home / f"data/cerebrum/models/merged/Own-{other}.gguf"
    assert done.err.splitlines()[-1] == f"installed own:{other}: {path}"
    assert not tiny_user.hub.log.requests("cdn")
    assert_layers_copied([path], [tiny_user.path(f"Tiny-{other}.gguf", REPOSITORY)], TWO_TIMES)

    named = tiny_user.pull(f"own:{recommended.lower()}")
    assert named.err.splitlines()[-1] == f"installed own:{recommended}: {path.with_name(f'Own-{recommended}.gguf')}"
    assert len(tiny_user.downloads()) == 1
    assert {each["reference"]: each["merged_from"] for each in tiny_user.listed() if each["source"] == "merge"} == {
        f"own:{each}": [f"tiny:{each}"] for each in SIZES
    }


@pytest.mark.parametrize("quantization", SIZES)
def test_merge_pull_offline_uses_the_installed_merge(quantization: str, home: Home, tinies: dict[str, Path]) -> None:
    install(home, tinies[quantization])
    path = merged_path(home, f"Own-{quantization}.gguf")
    assert pull(home, f"own:{quantization}") == f"installed own:{quantization}: {path}"
    for each in SIZES.keys() - {quantization}:
        install(home, tinies[each])
    before = path.stat()
    done = home.run("pull", "--offline", "own")
    assert (done.code, done.err) == (0, f"installed own:{quantization}: {path}\n")
    assert (path.stat().st_mtime_ns, [each.name for each in path.parent.glob("*.gguf")]) == (
        before.st_mtime_ns,
        [path.name],
    )


@pytest.mark.parametrize("quantization", SIZES)
def test_merge_pull_merges_the_named_quantization(quantization: str, home: Home, tinies: dict[str, Path]) -> None:
    (home.path / "own").write_text("a file with the name of the row")
    sources = {each: install(home, path) for each, path in tinies.items()}
    path = merged_path(home, f"Own-{quantization}.gguf")
    assert pull(home, f"own:{quantization.lower()}") == f"installed own:{quantization}: {path}"
    assert_layers_copied([path], [sources[quantization]], TWO_TIMES)


def test_merge_pull_offline_reports_missing_source_models(home: Home, tinies: dict[str, Path]) -> None:
    install(home, tinies["Q8_0"])
    done = home.run("pull", "--offline", "own:Q4_K_M")
    error = "error: tiny:Q4_K_M is not downloaded, and the network is disabled"
    assert (done.code, done.out, done.err.splitlines()[0]) == (3, "", error)
    assert not list((home.path / "data").rglob("*.gguf*"))


@pytest.mark.parametrize("quantization", SIZES)
def test_merge_pull_takes_the_quantization_of_its_source(
    quantization: str, home: Home, tinies: dict[str, Path]
) -> None:
    write_catalogue(home, row("own", "own.yaml", ""))
    install(home, tinies[quantization])
    path = merged_path(home, f"Own-{quantization}.gguf")
    assert pull(home, "own") == f"installed own:{quantization}: {path}"
    [made] = [each for each in home.rows if each["source"] == "merge"]
    assert (made["quantization"], made["error"]) == (quantization, None)


@pytest.mark.parametrize("quantizations", [KNOWN, ""])
@pytest.mark.parametrize("rows", [["own"], ["own", "other"]], ids=["itself", "each other"])
def test_merge_pull_reports_circular_recipes(rows: list[str], quantizations: str, home: Home) -> None:
    write_catalogue(home, "".join(row(each, f"{each}.yaml", quantizations) for each in rows))
    for each, used in zip(rows, [*rows[1:], rows[0]], strict=True):
        (home.command.config / f"{each}.yaml").write_text(stack((used, 0, 4)))
    done = home.run("pull", "--offline", "-y", "own")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: own: circular recipe\n hint: fix its row in models.toml\n"
    assert not list((home.path / "data").rglob("*.gguf*"))


def test_merge_pull_uses_a_path_without_listing_it(home: Home, tinies: dict[str, Path]) -> None:
    source = Path(shutil.copy(tinies["Q8_0"], home.path / "elsewhere.gguf"))
    (home.command.config / "own.yaml").write_text(stack((str(source), 0, 4)))
    pull(home, "own:Q8_0")
    [made] = home.rows
    assert (made["reference"], made["merged_from"]) == ("own:Q8_0", ["elsewhere.gguf"])
    assert_layers_copied([Path(made["path"])], [source], range(4))


def test_merge_pull_needs_disk_space_for_the_download_too(home: Home, tinies: dict[str, Path]) -> None:
    need = 2_700_000 + SIZES["Q4_K_M"] + DISK_RESERVE
    assert [starts_pulling(home, free) for free in (need - 1, need)] == [False, True]
    install(home, tinies["Q4_K_M"])
    need -= SIZES["Q4_K_M"]
    assert [starts_pulling(home, free) for free in (need - 1, need)] == [False, True]


def starts_pulling(home: Home, free: int) -> bool:
    """Whether source models are pulled with this many bytes of free disk space."""
    requested: list[str] = []

    def refuse_pull(reference: Reference) -> Model:
        requested.append(str(reference))
        raise ModelNotFound(f"{reference} is not there", "")

    with pytest.raises((MergeError, ModelNotFound)) as caught:
        merge_of_own(home, free).build("Q4_K_M", None, refuse_pull)
    assert ("not enough disk space" in str(caught.value)) == (not requested)
    return requested == ["tiny:Q4_K_M"]


def merge_of_own(home: Home, free: int) -> CatalogueMerge:
    """The merge of `own`, with this many bytes of free disk space."""
    runtime = runtime_for({}, home.path)
    library = runtime.library
    library.given_cache = Cache(home.path / "hub")
    spec = library.spec_named("own")
    assert spec
    return CatalogueMerge(library, Merger(library, LlamaCodec, lambda path: free), spec, catalogue_recipe(spec))


@pytest.mark.parametrize("is_link", [False, True])
def test_merge_pull_builds_and_deletes_a_models_toml_row(is_link: bool, home: Home, tinies: dict[str, Path]) -> None:
    if is_link:
        (home.path / "elsewhere").mkdir()
        (home.path / "data").symlink_to("elsewhere")
    source = install(home, tinies["Q4_K_M"])
    done = home.run("pull", "own", "--offline")
    path = merged_path(home, "Own-Q4_K_M.gguf")
    assert (done.code, cleaned(done).splitlines()[-1]) == (0, f"installed own:Q4_K_M: {path.resolve()}")
    assert metadata_bytes(path)["general.name"].endswith(b"Own-1.0")
    assert (home.rows[1]["reference"], home.rows[1]["merged_from"]) == ("own:Q4_K_M", ["Tiny-Q4_K_M"])
    removed = home.run("rm", "-y", "own")
    assert (removed.err, path.exists(), source.exists()) == (
        "deleted own:Q4_K_M, freed 3 MB\n",
        False,
        True,
    )


def test_merge_pull_sets_a_missing_file_type(tiny_user: HubUser, tmp_path: Path) -> None:
    silent = write_quantized(tmp_path / "silent.gguf", shape=FOUR_LAYERS)
    silent.write_bytes(silent.read_bytes().replace(b"general.file_type", b"general.file_tipo"))
    tiny_user.hub.repositories[REPOSITORY].commit({"Tiny-Q4_K_M.gguf": silent})
    path = tiny_user.command.home / "data/cerebrum/models/merged/Own-Q4_K_M.gguf"
    installed = f"installed own:Q4_K_M: {path}"
    assert tiny_user.pull("own:Q4_K_M").err.splitlines()[-1] == installed
    assert metadata_bytes(path)["general.file_type"].endswith((15).to_bytes(4, "little"))
    before = path.stat().st_mtime_ns
    for arguments in (["own:Q4_K_M"], ["own", "--offline"]):
        assert tiny_user.pull(*arguments).err == f"{installed}\n"
    assert path.stat().st_mtime_ns == before
    [made] = [each for each in tiny_user.listed() if each["source"] == "merge"]
    assert (made["reference"], made["quantization"]) == ("own:Q4_K_M", "Q4_K_M")


@pytest.mark.parametrize("quantization", SIZES)
def test_merge_uses_the_quantization_after_a_catalogue_name(
    quantization: str, home: Home, tinies: dict[str, Path]
) -> None:
    sources = {each: install(home, path) for each, path in tinies.items()}
    done = home.run("merge", f"own:{quantization}", "-o", "x.gguf", "--offline")
    assert done.code == 0, done.err
    assert_layers_copied([home.path / "x.gguf"], [sources[quantization]], TWO_TIMES)
