"""The packaged models.toml says what is known of each model, finds files and is planned; rows of the user's own."""

from pathlib import Path

import pytest
import tomlkit
from hub_user import RecordedProgress

from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.core.settings import fold
from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine.capacity import SYSTEM_RESERVE, Capacity
from cerebrum_cli.engine.memory import HEADROOM
from cerebrum_cli.engine.requests import DEFAULT_CONTEXT
from cerebrum_cli.formats.prompt_format import PLAIN_FORMATS
from cerebrum_cli.library import planning
from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.catalogue import Catalogue, ModelSpec, Repository
from cerebrum_cli.library.catalogue_file import load_catalogue
from cerebrum_cli.library.hub import HubFile, Listing
from cerebrum_cli.library.library import CATALOGUE, Library
from cerebrum_cli.library.pull import DownloadOptions, Puller
from cerebrum_cli.library.reference import quantization_of, same_quantization
from cerebrum_cli.library.registry import Registry
from cerebrum_cli.weights.building import BUILDER

PACKAGED = {spec.name: spec for spec in load_catalogue([CATALOGUE])}
SOURCES = [(spec, source) for spec in PACKAGED.values() for source in spec.sources]


def test_catalogue_has_the_formats_of_the_first_systems_and_unique_names() -> None:
    formats = {spec.name: spec.format for spec in PACKAGED.values() if spec.format}
    cerebrum = ("cerebrum-7b", "cerebrum-8x7b", "cerebrum-12b")
    assert formats == {**dict.fromkeys(cerebrum, "cerebrum"), "collective-cognition-7b": "collective-cognition"}
    assert {*formats.values()} <= {*PLAIN_FORMATS}
    names = [name.lower() for spec in PACKAGED.values() for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", PACKAGED)
def test_catalogue_row_is_complete_and_names_its_sources(name: str) -> None:
    spec = PACKAGED[name]
    heading = f'\n[models."{name}"]\n' if "." in name else f"\n[models.{name}]\n"
    assert spec.license and spec.good_for and spec.notes and spec.context_size and spec.kv_bytes_per_token
    text, found, _ = CATALOGUE.read_text(encoding="utf-8").partition(heading)
    before = text.rpartition("\n\n")[2]
    source = f"https://huggingface.co/{spec.repo_id}\n" if spec.repo_id else "https://"
    assert found and source in f"{before}\n" and all(line.startswith("# ") for line in before.splitlines())


NAMES = {
    "cerebrum-7b": ("cerebrum", "CEREBRUM-7B", "Cerebrum-1.0-7b", "cerebrum-1.0-7B-q4_ks.GGUF"),
    "cerebrum-8x7b": ("Cerebrum-1.0-8x7b",),
    "collective-cognition-7b": ("CollectiveCognition-v1-Mistral-7B", "collective-cognition"),
    "cerebrum-12b": ("Cerebrum-1.0-12.25B", "Cerebrum-1.0-12.25B-Q4_K_M.gguf"),
    "mistral-c2f-7b": ("Mistral-C2F",),
    "starter": ("SmolLM2-135M-Instruct", "STARTER", "smollm2-135m-instruct.q4_1.gguf"),
}
OTHERS = (
    *("cerebrum-7", "cerebrum-7b:Q4_K_M", "", "CollectiveCognition-v1.1-Mistral-7B", "SmolLM2-135M-Instruct.Q8_0.gguf"),
    *("collectivecognition-v1.1-mistral-7b.Q4_K_M.gguf", "Cerebrum-1.0-7b-Q4_K_M.gguf.part", "Cerebrum-1.0-7b-.gguf"),
    *("Cerebrum-1.0-7b-Q4_K_M-00001-of-00002", "Cerebrum-1.0-7b-Q4_K_M-1-of-2.gguf", "Cerebrum-1.0-7b.imatrix"),
    *("Cerebrum-1_0-7b-Q4_K_M.gguf", "old-Cerebrum-1.0-7b-Q4_K_M.gguf", "Cerebrum-1.0-12b-Q4_K_M.gguf"),
)


def test_spec_has_names_and_files_in_any_case() -> None:
    for name, spellings in (*NAMES.items(), (None, OTHERS)):
        for each in spellings:
            found = [spec.name for spec in PACKAGED.values() if spec.has_name(each) or spec.matches(each)]
            assert found == ([name] if name else []), each


@pytest.mark.parametrize(("spec", "source"), SOURCES, ids=[source.repo_id for _, source in SOURCES])
def test_spec_matches_whole_and_split_files_in_any_case(spec: ModelSpec, source: Repository) -> None:
    for name, size in source.quantizations.items():
        file = source.file.replace("{quant}", name)
        split = file.replace(".gguf", "-00001-of-00002.gguf")
        for spelling in (file, split, file.upper(), file.lower()):
            assert source.matches(spelling)
            assert [each.name for each in PACKAGED.values() if each.matches(spelling)] == [spec.name]
        assert same_quantization(quantization_of(file), name)
        assert 250_000_000 < size < 60_000_000_000


def test_catalogue_rows_recommend_sampling_for_each_mode() -> None:
    def sampled(name: str, **user: object) -> tuple[object, ...]:
        values = fold(PACKAGED[name].recommended, user)
        return values.think, values.temperature, values.top_k, values.top_p, values.min_p, values.presence_penalty

    assert sampled("qwen3.5-4b") == sampled("qwen3.5-4b", think="on") == ("on", 1.0, 20, 0.95, 0.0, 1.5)
    assert sampled("qwen3.5-4b", think="off") == ("off", 0.7, 20, 0.8, 0.0, 1.5)
    assert sampled("qwen3.5-2b") == ("off", 1.0, 20, 1.0, 0.0, 2.0)
    assert sampled("qwen3.8-27b") == ("on", 1.0, 20, 0.95, 0.0, 0.0)
    assert sampled("gemma4-12b") == (None, 1.0, 64, 0.95, 0.0, 0.0)
    assert sampled("gpt-oss-20b") == (None, 1.0, 0, 1.0, 0.0, 0.0)
    assert sampled("llama-3.2-3b") == (None, 0.6, 0, 0.9, 0.0, 0.0)
    sampling = {"temperature", "top_k", "top_p", "min_p"}
    settings = [{*spec.settings, *spec.thinking} for spec in PACKAGED.values() if sampled(spec.name)[1] != 0]
    assert all(sampling <= keys for keys in settings)  # what a card leaves out is not our default
    modes = [spec for spec in PACKAGED.values() if spec.thinking or spec.no_thinking]
    assert all("think" in spec.settings for spec in modes)  # without it, neither table would apply
    greedy = {name for name in PACKAGED if sampled(name)[1] == 0}
    first = {"cerebrum-7b", "cerebrum-8x7b", "cerebrum-12b", "collective-cognition-7b", "mistral-c2f-7b", "starter"}
    assert greedy == first | {
        "granite-4.1-3b",
        "ministral-3-8b",
        "qwen2.5-coder-1.5b",
        "qwen2.5-coder-0.5b",
        "gemma-3-270m",
    }


@pytest.mark.parametrize(
    "name", ["SmolLM3-MyFinetune.gguf", "gpt-oss-20b-abliterated.gguf", "SmolLM3-Q4_K_M-tuned.gguf"]
)
def test_file_named_like_a_row_is_no_model_of_the_catalogue(name: str) -> None:
    assert not [spec.name for spec in PACKAGED.values() if spec.matches(name)]


def written(directory: Path, text: str, name: str = "models.toml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def row(directory: Path, name: str, text: str) -> ModelSpec:
    specs = load_catalogue([CATALOGUE, directory / "missing.toml", written(directory, text)])
    return next(spec for spec in specs if spec.name == name)


def test_catalogue_user_file_adds_a_row(tmp_path: Path) -> None:
    values = {
        "title": "Mine-1.0",
        "repo_id": "me/Mine-GGUF",
        "revision": "refs/pr/1",
        "file": "mine.{quant}.gguf",
        "format": "chatml",
        "context_size": 4096,
        "license": "mit",
        "settings": {"temperature": 0.5, "think": "on"},
    }
    yours = {"repo_id": "you/Mine", "file": "Mine-{quant}.gguf", "revision": "v1", "quantizations": {"Q8_0": 20}}
    lists = {"aliases": ["my-model", "m1"]}
    tables = {"refuse": {"you/Mine-old": "it is old"}, "quantizations": {"Q4_0": 10}, "alternatives": [yours]}
    spec = row(tmp_path, "mine", tomlkit.dumps({"models": {"mine": {**values, **lists, **tables}}}))
    own = Repository("me/Mine-GGUF", "mine.{quant}.gguf", {"Q4_0": 10}, "refs/pr/1")
    alternative = Repository("you/Mine", "Mine-{quant}.gguf", {"Q8_0": 20}, "v1")
    assert spec == ModelSpec(
        "mine",
        **values,  # type: ignore[arg-type]
        aliases=("my-model", "m1"),
        quantizations=own.quantizations,
        alternatives=(alternative,),
        refuse={"you/Mine-old": "it is old"},
    )
    assert spec.sources == (own, alternative)
    assert spec.has_name("M1") and spec.matches("MINE.q4_0.gguf") and spec.matches("mine-q8_0-00001-of-00002.gguf")


def test_catalogue_user_file_overrides_single_keys(tmp_path: Path) -> None:
    text = '[models.cerebrum-7b]\naliases = ["c"]\nrevision = "v2"\nalternatives = []\nquantizations = {Q6_K = 3}'
    spec = row(tmp_path, "cerebrum-7b", text)
    packaged = PACKAGED["cerebrum-7b"]
    assert (spec.aliases, spec.revision, spec.alternatives) == (("c",), "v2", ())
    assert (spec.repo_id, spec.file, spec.format) == (packaged.repo_id, packaged.file, packaged.format)
    assert spec.quantizations == {"Q6_K": 3}
    assert not spec.has_name("cerebrum")
    assert [source.revision for source in spec.sources] == ["v2"]
    with pytest.raises(ConfigError, match="Is a directory"):
        load_catalogue([tmp_path])


PARTS_OF_OTHERS = {"mmproj-F16.gguf": 600_000_000, "mtp-x-Q8_0.gguf": 300_000_000, "x-BF16-mmproj.gguf": 700_000_000}


@pytest.mark.parametrize("memory", [8 * 2**30, 16 * 2**30, 24 * 2**30])
@pytest.mark.parametrize(("spec", "source"), SOURCES, ids=[source.repo_id for _, source in SOURCES])
def test_catalogue_row_resolves_and_is_planned(
    spec: ModelSpec, source: Repository, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(repo_id: str, _: object, revision: str | None) -> Listing:
        sizes = source.quantizations.items()
        files = {source.file.replace("{quant}", name): size for name, size in sizes} | PARTS_OF_OTHERS
        assert (repo_id, revision) == (source.repo_id, source.revision if is_first else None)
        return Listing(
            repo_id, "main", "0" * 40, {name: HubFile(name, size, "00" * 32) for name, size in files.items()}
        )

    is_first, available = source == spec.sources[0], memory - SYSTEM_RESERVE
    library = Library((), Registry(tmp_path), lambda: Capacity(memory))
    library.cache, library.catalogue = Cache(tmp_path), Catalogue((*PACKAGED.values(),))
    monkeypatch.setattr(planning, "list_repository", listed)
    puller = Puller(
        library=library,
        progress=RecordedProgress(),
        confirm=lambda *_: None,
        options=DownloadOptions(),
        builder=BUILDER,
    )
    plan = puller.plan(library.parse(spec.name if is_first else source.repo_id))
    assert (plan.spec, plan.available.context) == (spec, DEFAULT_CONTEXT)
    assert {fit.quantization: fit.size for fit in plan.available.candidates} == source.quantizations
    for fit in plan.available.candidates:
        needed = fit.size + DEFAULT_CONTEXT * (spec.kv_bytes_per_token or 0) + HEADROOM
        assert needed < fit.needed < needed + 5_000_000  # the mask
        fit_here = "fits" if fit.needed <= 7 / 8 * available else "tight"
        assert fit.fit == (fit_here if fit.needed <= available else "too big")
    if plan.chosen.fit == "too big":
        needs = f"needs {format_size(plan.chosen.needed)} of memory at 8192 tokens of context"
        said = f"{spec.name}:{plan.chosen.quantization} {needs}; {format_size(available)} is available"
        assert plan.available.warning == said
