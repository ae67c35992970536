"""Model references, and the files of a repository as models: what names state, and what is none."""

import timeit
from pathlib import Path

import pytest
from cases import rows
from hypothesis import given, strategies as st

from cerebrum_cli.core.errors import ModelFileError, UsageError
from cerebrum_cli.library.installed import model_paths
from cerebrum_cli.library.reference import (
    ModelReference,
    OllamaReference,
    Variant,
    parse_reference,
    quantization_of,
    same_quantization,
    variants,
)

HUB = "https://huggingface.co"
REPO = "bartowski/Cerebrum-1.0-7b-GGUF"
FILE = "Cerebrum-1.0-7b-Q4_K_M.gguf"
MAIN_FILE = ModelReference(REPO, file=FILE, revision="main")


@pytest.mark.parametrize(("text", "meant"), rows("references"))
def test_reference_parses_every_form(text: str, meant: dict[str, str]) -> None:
    reference = parse_reference(text)
    if "path" in meant:
        assert reference == Path(meant["path"])
        return
    assert reference == (OllamaReference(meant["ollama"]) if "ollama" in meant else ModelReference(**meant))
    assert parse_reference(str(reference)) == reference


def test_reference_is_a_path_in_the_home_directory_or_with_undecodable_characters() -> None:
    assert parse_reference("~/a.gguf") == Path.home() / "a.gguf"
    assert parse_reference("ä \udcff.gguf") == Path("ä \udcff.gguf")


@pytest.mark.parametrize("endpoint", ["https://hub.example", "http://localhost:8080/hf/", f"{HUB}/"])
def test_reference_accepts_urls_of_the_configured_hub(endpoint: str) -> None:
    for hub in (endpoint.removesuffix("/"), HUB):
        assert parse_reference(f"{hub}/{REPO}/blob/main/{FILE}", endpoint) == MAIN_FILE


@pytest.mark.parametrize(("problem", "text"), rows("refused_references"))
def test_reference_error_has_problem_and_hint(problem: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert problem in caught.value.message
    assert len(caught.value.message.splitlines()) == len(caught.value.hint.splitlines()) == 1


PIECES = (
    *(":", "/", "//", "\\", ".", "..", "~", "-", "--", "@", "?", "#", " ", "\n", "\t", "\0", "\x1b[31m", "\u2028"),
    *("%2e%2e", "%2F", "%5C", "%00", "%0A", "%FF", "%", "ä", "\udcff", "[", "]", "１"),
    *("a", "b", "main", ".gguf", ".GGUF", "Q4_0", "tree/", "resolve/", "blob/", "a/b/resolve/main/", "a/b/tree/"),
    *("hf.co", "https://", "huggingface.co/", "https://huggingface.co/", "https://huggingface.co/a/b/"),
)
texts = st.text() | st.text(st.characters()) | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


views = st.sampled_from([f"{HUB}/a/b/{view}/" for view in ("resolve", "blob", "tree")] + ["hf.co/a/b/resolve/"])
addresses = st.builds("{}{}{}".format, views, texts, st.sampled_from(["", "/x.gguf", "%2Fx.gguf", ".gguf"]))


@given(st.builds("{}{}".format, st.sampled_from(["", "hf.co/", "https://huggingface.co/a/b/"]), texts) | addresses)
def test_reference_of_any_text_is_refused_or_round_trips(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UsageError as error:
        assert len(error.message.splitlines()) == len(error.hint.splitlines()) == 1
        return
    if isinstance(reference, ModelReference):
        assert parse_reference(str(reference)) == reference
        for part in filter(None, (reference.file, reference.revision)):
            assert not {"", ".", ".."}.intersection(part.split("/")), part
            assert "\\" not in part
            assert part.isprintable()


@pytest.mark.parametrize(("quantization", "names"), rows("quantization_names").items())
def test_variants_quantization_of_a_file_name(quantization: str, names: list[str]) -> None:
    assert [quantization_of(name) for name in names] == [quantization] * len(names)


@pytest.mark.parametrize(("first", "second", "is_same"), rows("quantization_pairs"))
def test_variants_compare_quantizations_loosely(first: str, second: str, is_same: bool) -> None:
    assert same_quantization(first, second) is same_quantization(second, first) is is_same


@pytest.mark.parametrize(("files", "found"), rows("variants"))
def test_variants_group_files_into_models(files: list[str], found: list[tuple[str, list[str]]]) -> None:
    assert variants(files) == tuple(Variant(quantization, tuple(names)) for quantization, names in found)


def test_variants_model_paths_require_the_first_part(tmp_path: Path) -> None:
    first, second = (tmp_path / f"x-0000{number}-of-00002.gguf" for number in (1, 2))
    assert model_paths(first) == (first, second)
    with pytest.raises(ModelFileError) as caught:
        model_paths(second)
    assert caught.value.hint == f"use {first}"
    unsplit = tmp_path / "x-00001-of-00000.gguf"
    assert model_paths(unsplit) == (unsplit,)


@pytest.mark.parametrize("piece", ["Q4_", "-Q4_K", "-1.", "_imat", "UD-Q4_K_XL-", "mtp-", "00001-of-00002-"])
def test_names_of_any_length_are_read_in_linear_time(piece: str) -> None:
    def seconds(n: int) -> float:
        name = f"{(piece * n)[:n]}!.gguf"
        return min(timeit.repeat(lambda: (variants([name]), quantization_of(name)), number=1, repeat=3))

    assert seconds(40_000) < 20 * seconds(10_000) + 0.1
