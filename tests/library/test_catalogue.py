"""The packaged models.toml, rows of the user's own, and which quantization is recommended for a machine."""

from pathlib import Path

import pytest
from cases import rows

from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.core.settings import fold
from cerebrum_cli.engine.capacity import SYSTEM_RESERVE, Capacity
from cerebrum_cli.engine.machine import Speed
from cerebrum_cli.engine.memory import HEADROOM, Device
from cerebrum_cli.engine.requests import DEFAULT_CONTEXT
from cerebrum_cli.formats.prompt_format import PLAIN_FORMATS
from cerebrum_cli.gguf.sizes import ModelSizes, uniform_sizes
from cerebrum_cli.library.catalogue import ModelSpec, Repository
from cerebrum_cli.library.catalogue_file import load_catalogue
from cerebrum_cli.library.fit import MemoryFit, assess_quantizations, fit_memory
from cerebrum_cli.library.library import CATALOGUE
from cerebrum_cli.library.reference import quantization_of, same_quantization

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


@pytest.mark.parametrize(("name", "spellings"), rows("model_spellings"))
def test_spec_has_names_and_files_in_any_case(name: str | None, spellings: list[str]) -> None:
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


def test_catalogue_rows_recommend_whole_samplings() -> None:
    """What a card leaves out is not our default; without `think`, neither table of a mode would apply."""
    sampling = {"temperature", "top_k", "top_p", "min_p"}
    for spec in PACKAGED.values():
        assert sampling <= {*spec.settings, *spec.thinking} or fold(spec.recommended, {}).temperature == 0
        assert "think" in spec.settings or not (spec.thinking or spec.no_thinking)


def row(directory: Path, name: str, text: str) -> ModelSpec:
    (directory / "models.toml").write_text(text, encoding="utf-8")
    specs = load_catalogue([CATALOGUE, directory / "missing.toml", directory / "models.toml"])
    return next(spec for spec in specs if spec.name == name)


OWN_ROW = """
[models.mine]
title = "Mine-1.0"
aliases = ["my-model", "m1"]
repo_id = "me/Mine-GGUF"
revision = "refs/pr/1"
file = "mine.{quant}.gguf"
quantizations = {Q4_0 = 10}
format = "chatml"
settings = {temperature = 0.5, think = "on"}
refuse = {"you/Mine-old" = "it is old"}
alternatives = [{repo_id = "you/Mine", file = "Mine-{quant}.gguf", revision = "v1", quantizations = {Q8_0 = 20}}]
"""


def test_catalogue_user_file_adds_a_row(tmp_path: Path) -> None:
    own = Repository("me/Mine-GGUF", "mine.{quant}.gguf", {"Q4_0": 10}, "refs/pr/1")
    alternative = Repository("you/Mine", "Mine-{quant}.gguf", {"Q8_0": 20}, "v1")
    spec = row(tmp_path, "mine", OWN_ROW)
    assert (spec.name, spec.title, spec.aliases, spec.format) == ("mine", "Mine-1.0", ("my-model", "m1"), "chatml")
    assert spec.settings == {"temperature": 0.5, "think": "on"} and spec.refuse == {"you/Mine-old": "it is old"}
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


GIB, GB = 2**30, 10**9


KV = uniform_sizes(32, 32, 65_536)  # of Mistral-7B: 131,072 bytes per token


def machine(memory: float, *devices: float) -> Capacity:
    gpus = tuple(Device("GPU", "a graphics card", int(free), int(free)) for free in devices)
    return Capacity(int(memory), gpus or None)


def metal(memory: float, free: float) -> Capacity:
    """A machine whose GPU uses the memory of the host."""
    return Capacity(int(memory), (Device("MTL0", "Apple M2", int(free), int(free), is_unified=True),))


def fit(size: float, here: Capacity, sizes: ModelSizes = KV) -> MemoryFit:
    return fit_memory(sizes.with_weights(int(size)), DEFAULT_CONTEXT, here)


PLAIN, APPLE = machine(SYSTEM_RESERVE + 10 * GB), metal(16 * GIB, 12 * GIB)
LIMITS = [
    (PLAIN, {8.75 * GB - HEADROOM: "fits", 8.75 * GB - HEADROOM + 1: "tight"}),
    (PLAIN, {10 * GB - HEADROOM: "tight", 10 * GB - HEADROOM + 1: "too big"}),
    (machine(SYSTEM_RESERVE + 2 * GB, 10 * GB), {10 * GB - HEADROOM: "fits", 12 * GB: "too big"}),
    (machine(SYSTEM_RESERVE + 10 * GB, 5 * GB, 5 * GB), {15 * GB: "fits", 17 * GB: "tight"}),
    (machine(SYSTEM_RESERVE // 2), {1: "too big"}),
    (Capacity(SYSTEM_RESERVE + 10 * GB, ()), {8 * GB: "fits"}),
    (APPLE, {12 * GB: "fits", 15 * GB: "tight", 20.4 * GB: "too big"}),
]


@pytest.mark.parametrize(("here", "expected"), LIMITS)
def test_fit_changes_at_its_limits(here: Capacity, expected: dict[float, str]) -> None:
    without_kv = uniform_sizes(32, 32, 0)  # half a GiB is left free beside the weights
    assert {size: fit(size, here, without_kv).fit for size in expected} == expected


def test_fit_has_no_memory_where_the_system_needs_all() -> None:
    unusable = machine(SYSTEM_RESERVE // 2), machine(SYSTEM_RESERVE // 2, 10 * GB), APPLE
    assert [each.usable_memory for each in unusable] == [0, 10 * GB - HEADROOM, 15 * GIB]


@pytest.mark.parametrize(("name", "host", "gpus", "quantization", "expected"), rows("fit_by_memory"))
def test_fit_recommends_by_memory(name: str, host: float, gpus: list[float], quantization: str, expected: str) -> None:
    """GiB of memory of the host, and GB of GPUs."""
    here = machine(host * GIB, *(free * GB for free in gpus))
    candidates = assess_quantizations(PACKAGED[name].quantizations.items(), (), KV, DEFAULT_CONTEXT, here)
    assert [(each.quantization, each.fit) for each in candidates if each.recommended] == [(quantization, expected)]


@pytest.mark.parametrize(("host", "speed", "gigabytes", "quantization"), rows("nearest_quantizations"))
def test_fit_without_the_preferred_recommends_the_nearest(
    host: float, speed: list[float] | None, gigabytes: dict[str, float], quantization: str
) -> None:
    """With a speed in GB/s, that of larger files may be too low; of tight files the smallest, and unquantized last."""
    measured = Speed(generation=speed[0] * GB, prompts=speed[1] * GB) if speed else None
    here = Capacity(int(host * GIB), speed=measured)
    sizes = [(name, int(size * GB)) for name, size in gigabytes.items()]
    candidates = assess_quantizations(sizes, (), KV, DEFAULT_CONTEXT, here)
    assert [each.quantization for each in candidates if each.recommended] == [quantization]


def test_fit_marks_installed_quantizations_in_any_case() -> None:
    sizes = [("Q4_K_M", 4 * GB), ("Q8_0", 8 * GB), ("UD-Q4_K_XL", 5 * GB), ("model", GB)]
    installed, here = ["q4_k_m", "UD-q4_K_xl", "MODEL", "Q6_K", ""], machine(16 * GIB)
    candidates = assess_quantizations(sizes, installed, KV, DEFAULT_CONTEXT, here)
    states = [("model", True), ("Q4_K_M", True), ("UD-Q4_K_XL", True), ("Q8_0", False)]  # by size
    assert [(each.quantization, each.installed) for each in candidates] == states
    assert all(each.needed == fit(each.size, here).needed for each in candidates)
    assert assess_quantizations([], ["Q4_K_M"], KV, DEFAULT_CONTEXT, here) == ()
