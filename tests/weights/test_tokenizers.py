"""Vocabularies of checkpoints: llama.cpp gives the ids of the checkpoint's own tokenizer, or the folder is refused."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cases import rows
from hypothesis import HealthCheck, given, settings, strategies as st
from vocabularies import open_vocabulary

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.gguf.contents import Value
from cerebrum_cli.weights.checkpoints.vocabulary import read_vocabulary, tokenizer_files
from cerebrum_cli.weights.table import encode_header

FOLDER = Path(__file__).parents[1] / "data" / "checkpoints" / "tokenizers"
TEXTS = json.loads((FOLDER / "texts.json").read_text("utf-8"))
IDS = json.loads((FOLDER / "ids.json").read_text("utf-8"))
PRE_TOKENIZERS = json.loads((FOLDER / "pre_tokenizers.json").read_text("utf-8"))
SIZE = 700
LLAMA, GEMMA, MISTRAL, BYTES = "sentencepiece-llama", "sentencepiece-gemma", "merges-mistral", "byte-level"


def copied(name: str, target: Path, changes: Mapping[str, Any] = {}) -> Path:
    """Copy a folder, and set values in its JSON files by `file/key/key`; the key "+" appends to a list."""
    folder = shutil.copytree(FOLDER / name, target / name, dirs_exist_ok=True)
    for place, value in changes.items():
        file, *keys, last = place.split("/")
        path = folder / f"{file}.json"
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        part: Any = content
        for key in keys:
            part = part[int(key) if isinstance(part, list) else key]
        if last == "+":
            part.append(value)
        else:
            part[int(last) if isinstance(part, list) else last] = value
        path.write_text(json.dumps(content), "utf-8")
    return folder


def with_pre_tokenizer(name: str, target: Path) -> Path:
    pre_tokenizer, ignore_merges = PRE_TOKENIZERS[name].values()
    changes = {"tokenizer/pre_tokenizer": pre_tokenizer, "tokenizer/model/ignore_merges": ignore_merges}
    return copied(BYTES, target, changes)


def contents(folder: Path, config: Mapping[str, Any] = {}, size: int = SIZE) -> Any:
    values = read_vocabulary(tokenizer_files(folder), config, size)
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value.content for key, value in values.items()}


def llama_ids(folder: Path, target: Path, texts: list[str], trusted: bool = False) -> list[list[int]]:
    """The ids of texts in llama.cpp, without BOS."""
    values = dict(read_vocabulary(tokenizer_files(folder), {"eos_token_id": 2}, SIZE))
    values |= {"general.architecture": Value("STRING", "llama"), "tokenizer.ggml.add_bos_token": Value("BOOL", False)}
    target.write_bytes(encode_header(values, []))
    with open_vocabulary(target) as backend:
        return [list(backend.tokenize([Text(text, trusted)])) for text in texts]


@pytest.mark.parametrize("name", IDS)
def test_llama_gives_the_ids_of_the_tokenizer(name: str, tmp_path: Path) -> None:
    folder = with_pre_tokenizer(name, tmp_path) if name in PRE_TOKENIZERS else copied(name, tmp_path)
    if name in PRE_TOKENIZERS:
        assert contents(folder)["pre"] == name
    found = llama_ids(folder, tmp_path / "vocabulary.gguf", TEXTS)
    different = {text: (ids, own) for text, ids, own in zip(TEXTS, found, IDS[name], strict=True) if ids != own}
    assert different == {}


def test_a_space_in_front_as_transformers_5_saves_it(tmp_path: Path) -> None:
    found = llama_ids(copied(MISTRAL, tmp_path, rows("space_in_front")), tmp_path / "vocabulary.gguf", TEXTS)
    assert found == IDS[MISTRAL]


def test_added_tokens_are_found_in_trusted_text(tmp_path: Path) -> None:
    ids = llama_ids(copied(BYTES, tmp_path), tmp_path / "vocabulary.gguf", ["<|im_start|>", "<think>a</think>"], True)
    assert ids == [[601], [603, *ids[1][1:2], 604]]


def test_rows_have_types_and_unused_ones_fill_the_embedding(tmp_path: Path) -> None:
    changes = {
        "added_tokens/<|im_end|>": 602,
        "added_tokens/▁<tool>": 610,
        "tokenizer_config/added_tokens_decoder/620": {"content": "[INST]", "special": True},
    }
    found = contents(copied(LLAMA, tmp_path, changes))
    kinds = dict(enumerate(zip(found["tokens"], found["token_type"], strict=True)))
    assert len(kinds) == len(found["scores"]) == SIZE
    special = {602: (b"<|im_end|>", 3), 610: (b" <tool>", 4), 615: (b"[PAD615]", 5), 620: (b"[INST]", 3)}
    assert {number: kinds[number] for number in special} == special
    assert (found["scores"][615], kinds[3][1], kinds[300][1]) == (-10_000, 6, 1)


def test_tokenizer_json_wins_over_the_tokenizer_model_of_another_model(tmp_path: Path) -> None:
    folder = copied(MISTRAL, tmp_path)
    scores = contents(folder)["scores"]
    shutil.copy(FOLDER / LLAMA / "tokenizer.model", folder)
    assert contents(folder)["scores"] != scores
    shutil.copy(FOLDER / GEMMA / "tokenizer.model", folder)
    assert contents(folder)["scores"] == scores


@pytest.mark.parametrize("text", ["<image_soft_token>", "[PAD]"])
def test_tokens_that_no_text_needs_may_have_no_row(text: str, tmp_path: Path) -> None:
    folder = copied(GEMMA, tmp_path, {f"added_tokens/{text}": SIZE, "tokenizer_config/pad_token": text})
    found = contents(folder, {"eos_token_id": 1})
    assert (len(found["tokens"]), text.encode() in found["tokens"]) == (SIZE, False)
    assert "padding_token_id" not in found


@pytest.mark.parametrize(("name", "changes", "config", "expected"), rows("special_tokens"))
def test_special_tokens(
    name: str, changes: Mapping[str, Any], config: Mapping[str, Any], expected: Mapping[str, Any], tmp_path: Path
) -> None:
    found = contents(copied(name, tmp_path, changes), config)
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(("changes", "text", "expected"), rows("chat_templates"))
def test_chat_template(changes: Mapping[str, Any], text: str, expected: str, tmp_path: Path) -> None:
    folder = copied(BYTES, tmp_path, changes)
    if text:
        (folder / "chat_template.jinja").write_text(text)
    assert contents(folder).get("chat_template") == expected


def test_merges_of_texts_and_with_spaces(tmp_path: Path) -> None:
    folder = copied(BYTES, tmp_path)
    merges = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    texts = [" ".join(pair) for pair in merges]
    whole_pieces = {"tokenizer/model/ignore_merges": True, "tokenizer/model/vocab/<|im_end|>": 602}
    assert contents(copied(BYTES, tmp_path / "whole", whole_pieces))["pre"] == "qwen2"
    spaced = {"tokenizer/model/vocab/a b": 650, "tokenizer/model/merges/+": ["a", " b"]}
    for changes in (spaced, {"tokenizer/model/merges": texts}):
        assert contents(copied(BYTES, tmp_path, changes))["merges"] == tuple(text.encode() for text in texts)


@pytest.mark.parametrize(("name", "changes", "problem"), rows("refused_tokenizers"))
def test_other_tokenizers_are_refused(name: str, changes: Mapping[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=problem) as caught:
        contents(copied(name, tmp_path, changes))
    assert "\n" not in caught.value.message
    assert caught.value.hint


# fields of a SentencePiece model: the algorithm, how long runs of spaces are normalized
@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"\x18\x02", b"\x18\x01", "of the type 'unigram'"),
        (b"\x18\x02", b"\x18\x09", "damaged"),
        (b"\x20\x00", b"\x20\x01", "the normalizer in"),
        (b"<0x41>", b"<0x4_>", "without byte tokens, such as '<0x41>'"),
    ],
)
def test_other_sentencepiece_models_are_refused(old: bytes, new: bytes, problem: str, tmp_path: Path) -> None:
    path = copied(LLAMA, tmp_path) / "tokenizer.model"
    head, tail = path.read_bytes().rsplit(old, 1)
    path.write_bytes(head + new + tail)
    with pytest.raises(ModelFileError, match=problem):
        contents(path.parent)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"neither tokenizer.json nor tokenizer.model"):
        contents(tmp_path)
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name).write_bytes(b"\xff{")
        with pytest.raises(ModelFileError, match=r"not JSON|damaged|cannot be read"):
            contents(tmp_path)


def require_values_or_refusal(folder: Path) -> None:
    """A damaged tokenizer either raises ModelFileError, or its values can be written."""
    try:
        values = read_vocabulary(tokenizer_files(folder), {}, SIZE)
    except ModelFileError:
        return
    encode_header({"general.architecture": Value("STRING", "llama"), **values}, [])


@pytest.mark.slow
@given(st.integers(0, 9000), st.binary(max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_sentencepiece_model_raises_one_error(tmp_path: Path, at: int, data: bytes) -> None:
    path = copied(LLAMA, tmp_path) / "tokenizer.model"
    content = path.read_bytes()
    path.write_bytes(content[:at] + data + content[at + len(data) :] if data else content[:at])
    require_values_or_refusal(path.parent)


def with_other_values(value: Any, depth: int = 3) -> Iterator[Any]:
    """A JSON value with one of its parts replaced by one of another type; of long ones only the last parts."""
    yield from (None, 1.5, "x", {"x": 1})
    if not depth or not isinstance(value, dict | list):
        return
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value))[-4:]:
        for other in with_other_values(item, depth - 1):
            changed = value.copy()
            changed[key] = other
            yield changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"),
    [(name, path.name) for name in (LLAMA, MISTRAL, BYTES) for path in sorted((FOLDER / name).glob("*.json"))],
)
def test_values_of_other_types_raise_one_error(name: str, file: str, tmp_path: Path) -> None:
    path = copied(name, tmp_path) / file
    for content in with_other_values(json.loads(path.read_text("utf-8"))):
        path.write_text(json.dumps(content), "utf-8")
        require_values_or_refusal(path.parent)
