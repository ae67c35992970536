"""Configurations of checkpoints: what llama.cpp cannot compute like transformers is refused, by key and value."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import rows
from checkpoint_models import read_model, write_checkpoint, write_weights

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint
from cerebrum_cli.weights.table import Table

read_model = cache(read_model)
ROPE = {"rope_theta": 1e4}
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0}
HEAD = "lm_head.weight"


def converted(name: str, changes: dict[str, Any], folder: Path, omitted: str = "") -> Table:
    """A model with changes to its configuration, and without one of its keys."""
    model = read_model(name)
    config = {**model.config, **changes}
    config.pop(omitted, None)
    return read_checkpoint(write_checkpoint(folder, model, config=config), "tiny")


@pytest.mark.parametrize(("name", "changes", "shown"), rows("unsupported_configurations"))
def test_configuration_that_llama_cpp_cannot_follow_is_refused(
    name: str, changes: dict[str, Any], shown: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=f"cannot convert a model with {shown}"):
        converted(name, changes, tmp_path)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama2", {"intermediate_size": 128}, "ffn_gate.weight has the shape"),
        ("llama2", {"head_dim": 24}, "attn_q.weight has the shape"),
        ("llama2", {"rms_norm_eps": "1e-5"}, "rms_norm_eps '1e-5'"),
        ("gemma3", {"layer_types": ["sliding_attention"] * 100}, "layer_types ["),
        ("llama2", {"architectures": ["X" * 10_000]}, "cannot convert XXX"),
        ("llama2", {"architectures": None}, "config.json: has no `architectures`"),
    ],
)
def test_configuration_that_does_not_fit_the_weights_is_refused(
    name: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError) as caught:
        converted(name, changes, tmp_path)
    assert message in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(("name", "omitted", "key", "value"), rows("configuration_defaults"))
def test_keys_that_are_omitted_have_the_defaults_of_transformers(
    name: str, omitted: str, key: str, value: float, tmp_path: Path
) -> None:
    found = converted(name, {}, tmp_path, omitted)
    assert found.metadata[f"{found.architecture}.{key}"].content == value


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3", {"rope_parameters": {**YARN, "mscale": 1.0}}),  # which transformers ignores alone
        ("qwen3", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "attention_factor": 1.1}}),
        ("qwen3-moe", {"mlp_only_layers": None}),
        ("gemma3", {"use_bidirectional_attention": None}),
    ],
)
def test_keys_that_change_nothing_are_accepted(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    converted(name, changes, tmp_path)


def test_biases_that_llama_cpp_does_not_know_are_refused(tmp_path: Path) -> None:
    model = read_model("qwen3")
    folder = write_checkpoint(tmp_path, model)
    bias = "model.layers.0.self_attn.o_proj.bias"
    write_weights(folder, {**dict(model.weights()), bias: np.ones(model.config["hidden_size"], np.float32)})
    with pytest.raises(ModelFileError, match=f"cannot convert the tensor '{bias}'"):
        read_checkpoint(folder, "tiny")


def test_output_matrix_that_is_stored_is_kept(tmp_path: Path) -> None:
    model = read_model("llama32")
    folder = write_checkpoint(tmp_path, model)
    weights = {key: values for key, values in model.weights() if key != HEAD}
    for stored in ({}, {HEAD: weights["model.embed_tokens.weight"]}):
        write_weights(folder, weights | stored)
        assert ("output.weight" in read_checkpoint(folder, "tiny").tensors) == bool(stored)


def test_weights_of_other_types_are_refused_by_their_name(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, read_model("llama2"))
    path = folder / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for kind in ("F64", "F8_E4M3"):
        changed = {name: {**entry, "dtype": kind} for name, entry in header.items() if name != "__metadata__"}
        text = json.dumps(changed).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
        with pytest.raises(ModelFileError, match=f"cannot convert {kind} weights"):
            read_checkpoint(folder, "tiny")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_pointer_of_git_lfs_is_named(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, read_model("llama2"))
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelFileError, match=f"{name}: a Git LFS pointer, not the file"):
        read_checkpoint(folder, "tiny")
