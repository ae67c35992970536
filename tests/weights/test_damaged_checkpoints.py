"""Checkpoints that are damaged, incomplete or not supported: one error says what is wrong and what helps."""

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import rows
from checkpoint_models import CheckpointModel, read_model, write_checkpoint, write_json, write_weights
from merges import convert_checkpoint

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint

read_model = cache(read_model)
HUGE = 2_000_000_000
COUNTS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_local_experts", "vocab_size")
EXPERTS = "num_experts_per_tok"
# Reads each folder with little memory and time, and prints the errors.
READ_ALL = """
import sys
from pathlib import Path
from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint
for folder in sys.argv[1:]:
    try:
        read_checkpoint(Path(folder), "tiny")
    except ModelFileError as error:
        print(Path(folder).name, error.message, error.hint, sep="|")
"""


def changed_config(folder: Path, name: str, changes: Mapping[str, Any], omitted: str = "") -> Path:
    """A model with changes to its configuration, and without one of its keys."""
    config = {key: value for key, value in {**read_model(name).config, **changes}.items() if key != omitted}
    return write_checkpoint(folder, read_model(name), config=config)


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))


def test_huge_counts_are_refused_in_little_memory_and_time(tmp_path: Path) -> None:
    cases: list[tuple[str, Mapping[str, Any]]] = [("qwen3-moe", {key: HUGE}) for key in (*COUNTS, EXPERTS, "head_dim")]
    cases += [(name, {"num_hidden_layers": HUGE}) for name in ("gemma3", "llama2")]
    cases += [("mixtral", {"num_local_experts": HUGE}), ("llama2", {"max_position_embeddings": HUGE**3})]
    cases.append(("llama2", {"hidden_size": HUGE, "head_dim": None}))
    folders = [changed_config(tmp_path / f"case-{number}", *case) for number, case in enumerate(cases)]
    command = [sys.executable, "-c", READ_ALL, *map(str, folders)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, preexec_fn=limited, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert [(name, bool(message and hint)) for name, message, hint in lines] == [(path.name, True) for path in folders]


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "2", None, [2], {"x": 2}])
def test_counts_of_other_kinds_are_refused(value: object, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, read_model("mixtral"))
    for key in (*COUNTS, "num_experts_per_tok", "max_position_embeddings", "hidden_size"):
        if key == "num_key_value_heads" and not value:
            continue  # as many as heads
        write_json(folder / "config.json", {**read_model("mixtral").config, key: value})
        with pytest.raises(ModelFileError, match=r"config\.json: ") as caught:
            read_checkpoint(folder, "tiny")
        assert key in caught.value.message, caught.value.message
        assert "\n" not in caught.value.message + caught.value.hint


def damage(folder: Path, model: CheckpointModel, kind: str, value: Any) -> None:
    """Damage a checkpoint in one file: without tensors of a name, or with other names, shapes, fields or texts."""
    path = folder / "model.safetensors"
    weights = dict(model.weights())
    match kind:
        case "without":
            write_weights(folder, {name: each for name, each in weights.items() if value not in name})
        case "prefixed":
            write_weights(folder, {f"{value}{name}": each for name, each in weights.items()})
        case "shortened":
            write_weights(folder, {name: each[:-1] if value in name else each for name, each in weights.items()})
        case "bias":
            write_weights(folder, weights | {value: np.ones(model.config["hidden_size"], np.float32)})
        case "config":
            write_json(folder / "config.json", {**model.config, **value})
        case "header":
            size, data = struct.unpack_from("<Q", path.read_bytes())[0], path.read_bytes()
            header = json.loads(data[8 : 8 + size])
            header["lm_head.weight"] |= value
            text = json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
        case "shards":
            path.unlink()
            write_weights(folder, weights, shards=3)
            write_texts(folder, value)
        case "texts":
            write_texts(folder, value)
        case "pipe":
            path.unlink()
            os.mkfifo(path)


def write_texts(folder: Path, texts: Mapping[str, str | None]) -> None:
    for name, text in texts.items():
        (folder / name).unlink() if text is None else (folder / name).write_text(text)


DAMAGES = rows("damaged_checkpoints")


@pytest.mark.parametrize(("name", "kind", "value", "problem", "hint"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_folder_is_refused(name: str, kind: str, value: Any, problem: str, hint: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, read_model(name))
    damage(folder, read_model(name), kind, value)
    with pytest.raises(ModelFileError) as caught:
        read_checkpoint(folder, "tiny")
    assert problem in caught.value.message and hint in caught.value.hint, (caught.value.message, caught.value.hint)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"])
def test_weights_that_are_no_numbers_are_refused(bad: float, dtype: str, tensor: str, tmp_path: Path) -> None:
    model = read_model("llama2")
    weights = dict(model.weights())
    weights[tensor] = weights[tensor].copy()
    weights[tensor].flat[-1] = bad
    folder = write_checkpoint(tmp_path / "folder", model)
    write_weights(folder, weights, dtype)
    for type in ("F32", dtype, "Q8_0", "Q4_K_M"):
        with pytest.raises(ModelFileError, match=r"model\.safetensors: .*\.weight has infinite or NaN weights"):
            convert_checkpoint(folder, tmp_path / "out.gguf", type)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_largest_finite_weights_are_kept(tmp_path: Path) -> None:
    model = read_model("llama2")
    weights = dict(model.weights())
    weights["lm_head.weight"] = np.full_like(weights["lm_head.weight"], 3e38)
    folder = write_checkpoint(tmp_path / "folder", model)
    write_weights(folder, weights, "F32")
    assert convert_checkpoint(folder, tmp_path / "out.gguf", "F32").exists()


def test_recommended_settings_that_no_sampler_has_are_left_out(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, read_model("llama2"))
    for number in ("1e300", "9" * 401, "NaN", "-Infinity"):
        (folder / "generation_config.json").write_text(f'{{"temperature": {number}, "top_p": 0.5, "top_k": {number}}}')
        metadata = read_checkpoint(folder, "tiny").metadata
        assert [key for key in metadata if key.startswith("general.sampling.")] == ["general.sampling.top_p"]


@pytest.mark.parametrize(("name", "omitted", "key", "value"), rows("configuration_defaults"))
def test_omitted_keys_have_defaults(name: str, omitted: str, key: str, value: float, tmp_path: Path) -> None:
    found = read_checkpoint(changed_config(tmp_path, name, {}, omitted), "tiny")
    assert found.metadata[f"{found.architecture}.{key}"].content == value


@pytest.mark.parametrize(("name", "changes"), rows("harmless_configurations"))
def test_keys_that_change_nothing_are_accepted(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    read_checkpoint(changed_config(tmp_path, name, changes), "tiny")


def test_output_matrix_that_is_stored_is_kept(tmp_path: Path) -> None:
    model = read_model("llama32")
    folder = write_checkpoint(tmp_path, model)
    weights = {key: values for key, values in model.weights() if key != "lm_head.weight"}
    for stored in ({}, {"lm_head.weight": weights["model.embed_tokens.weight"]}):
        write_weights(folder, weights | stored)
        assert ("output.weight" in read_checkpoint(folder, "tiny").tensors) == bool(stored)
