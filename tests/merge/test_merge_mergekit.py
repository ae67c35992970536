"""Merges of files as llama.cpp's converter writes them, with the weights that mergekit 0.1.5 gives."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from merges import read_tensors, slerp, write_merge, write_weights
from numpy.typing import NDArray

from cerebrum_cli.merge.tensor_names import hugging_face_names

pytestmark = pytest.mark.slow

Floats = NDArray[np.float64]
Model = Mapping[str, Floats]
LAYERS = 5
HEAD, NORM, EMBEDDING = "output.weight", "output_norm.weight", "token_embd.weight"


def merge(recipe: Mapping[str, Any], models: Sequence[Path]) -> dict[str, Floats]:
    """Weights of a merge of the models `a`, `b` and so on."""
    out = models[0].with_name("merged.gguf")
    write_merge(json.dumps(recipe), {name: [path] for name, path in zip("abc", models, strict=False)}, out)
    return {
        name: np.frombuffer(each.data, np.float32).reshape(each.shape[::-1]).astype(np.float64)
        for name, each in read_tensors([out]).items()
    }


def whole(method: str, *sources: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Recipe of the whole models `a`, `b` and so on, each with its parameters."""
    models = [{"model": name, "parameters": source} for name, source in zip("abc", sources, strict=False)]
    return {"merge_method": method, "models": models, **more}


def random_model(seed: int) -> Model:
    """Random weights around 1, of five layers."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (6, 32), NORM: (32,), HEAD: (6, 32)}
    shapes |= {f"blk.{layer}.attn_q.weight": (32, 32) for layer in range(LAYERS)}
    return {
        name: random.normal(0.5, 1.0, shape).astype(np.float32).astype(np.float64) for name, shape in shapes.items()
    }


def test_merge_evaluates_head_and_final_norm_at_the_first_value(tmp_path: Path) -> None:
    models = [random_model(seed) for seed in (1, 2)]
    paths = [write_weights(tmp_path / f"{number}.gguf", model, layers=LAYERS) for number, model in enumerate(models)]
    gradient = [0.1, 0.5, 0.3, 0.7, 0.9]
    values = dict.fromkeys((EMBEDDING, NORM, HEAD), 0.1)
    values |= {f"blk.{layer}.attn_q.weight": value for layer, value in enumerate(gradient)}
    interpolated = merge(whole("slerp", {}, {}, base_model="a", parameters={"t": gradient}), paths)
    added = merge(whole("linear", {"weight": gradient}, {"weight": 1.0}, parameters={"normalize": False}), paths)
    scaled = merge(whole("passthrough", {}, parameters={"scale": gradient}), paths[:1])
    for name, value in values.items():
        first, second = (model[name] for model in models)
        np.testing.assert_allclose(interpolated[name], slerp((first, second), value), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(added[name], value * first + second, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scaled[name], value * first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("constant", ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"])
def test_merge_copies_factors_of_rope(constant: str, tmp_path: Path) -> None:
    models = [{EMBEDDING: np.ones((6, 32)), constant: np.full(16, value), NORM: np.ones(32)} for value in (8.0, 2.0)]
    paths = [write_weights(tmp_path / f"{number}.gguf", model) for number, model in enumerate(models)]
    overweight = {"weight": 1.1}
    for recipe, norm in (
        (whole("passthrough", {"scale": 0.5}), 0.5),
        (whole("linear", overweight, overweight, parameters={"normalize": False}), 2.2),
        (whole("linear", {"weight": 1.0}, {"weight": 3.0}), 1.0),
        (whole("slerp", {}, {}, base_model="a", parameters={"t": 0.5}), 1.0),
        (whole("task_arithmetic", {}, {"weight": 0.5}, base_model="a"), 1.0),
    ):
        made = merge(recipe, paths[: len(recipe["models"])])
        np.testing.assert_allclose(made[NORM], norm, rtol=1e-6)
        assert (made[constant] == 8.0).all(), recipe
    made = merge(whole("slerp", {}, {}, base_model="b", parameters={"t": 0.5}), paths)
    assert (made[constant] == 2.0).all()


# Recipes, and the weights of a norm by hand where the models have (1, 0, 0, 0) and (0, 2, 0, 0). On the arc between
# them at 0.5 both coefficients are sin(45°).
NORMS: Mapping[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "scale": (whole("passthrough", {"scale": 0.25}), (0.25, 0, 0, 0)),
    "scale 0": (whole("passthrough", {"scale": 0}), (0, 0, 0, 0)),
    "linear": (whole("linear", {"weight": 1}, {"weight": 3}), (0.25, 1.5, 0, 0)),
    "not normalized": (
        whole("linear", {"weight": 1.5}, {"weight": 0.5}, parameters={"normalize": False}),
        (1.5, 1, 0, 0),
    ),
    "slerp": (whole("slerp", {}, {}, base_model="a", parameters={"t": 0.5}), (sqrt(0.5), sqrt(2), 0, 0)),
    "task_arithmetic": (whole("task_arithmetic", {}, {"weight": 0.5}, base_model="a"), (0.5, 1, 0, 0)),
}
ADDED = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma-embedding", "nemotron", "qwen35"), 1.0),
    **dict.fromkeys(("gemma3n", "llama"), 0.0),
}

STORED_NORMS = (
    NORM,
    *(f"blk.0.{part}.weight" for part in ("attn_norm", "post_ffw_norm", "attn_q_norm", "nextn.enorm", "nextn.hnorm")),
)


@pytest.mark.parametrize("case", NORMS)
@pytest.mark.parametrize("architecture", ADDED)
def test_merge_combines_norms_without_the_added_one(architecture: str, case: str, tmp_path: Path) -> None:
    recipe, expected = NORMS[case]
    paths = []
    for number, values in enumerate(((1.0, 0, 0, 0), (0, 2.0, 0, 0))):
        stored = np.array(values)
        tensors = {EMBEDDING: stored, **dict.fromkeys(STORED_NORMS, stored + ADDED[architecture])}
        paths.append(write_weights(tmp_path / f"{number}.gguf", tensors, architecture))
    for name, made in merge(recipe, paths[: len(recipe["models"])]).items():
        added = ADDED[architecture] if "norm" in name else 0.0
        np.testing.assert_allclose(made, np.array(expected) + added, rtol=1e-6, atol=1e-6, err_msg=name)


def test_merge_leaves_the_norm_of_linear_attention_as_stored(tmp_path: Path) -> None:
    tensors = {EMBEDDING: np.ones(4), "blk.0.attn_norm.weight": np.full(4, 3.0), "blk.0.ssm_norm.weight": np.full(4, 3)}
    path = write_weights(tmp_path / "a.gguf", tensors, "qwen3next")
    made = merge(whole("passthrough", {"scale": 0.5}), [path])
    assert (made["blk.0.attn_norm.weight"] == 2.0).all()
    assert (made["blk.0.ssm_norm.weight"] == 1.5).all()


def test_merge_slerp_takes_heads_of_one_tensor_together(tmp_path: Path) -> None:
    """One arc for a tensor whose third dimension is heads, not experts."""
    random = np.random.default_rng(3)
    name, embedding = "blk.0.attn_k_b.weight", np.ones(32)
    first, second = (random.normal(size=(4, 8, 32)).astype(np.float32).astype(np.float64) for _ in range(2))
    tensors = [{EMBEDDING: embedding, name: each} for each in (first, second)]
    paths = [write_weights(tmp_path / f"{at}.gguf", each) for at, each in enumerate(tensors)]
    made = merge(whole("slerp", {}, {}, base_model="a", parameters={"t": 0.3}), paths)
    np.testing.assert_allclose(made[name], slerp((first, second), 0.3), rtol=1e-5, atol=1e-6)


# Names of Hugging Face files, and those of the tensors that llama.cpp's converter makes of them.

EXPERTS = "block_sparse_moe.experts"
NAMES = [
    ("llama", "block_sparse_moe.gate.weight", "ffn_gate_inp.weight"),
    ("llama", "mlp.gate.weight", "ffn_gate_inp.weight"),
    ("llama", f"{EXPERTS}.w1.weight", "ffn_gate_exps.weight"),
    ("llama", f"{EXPERTS}.w2.weight", "ffn_down_exps.weight"),
    ("llama", f"{EXPERTS}.w3.weight", "ffn_up_exps.weight"),
    ("llama", "mlp.experts.gate_up_proj", "ffn_gate_exps.weight"),
    ("llama", "mlp.experts.gate_up_proj", "ffn_up_exps.weight"),
    ("llama", "mlp.experts.down_proj", "ffn_down_exps.weight"),
    ("qwen3moe", "mlp.experts.gate_proj.weight", "ffn_gate_exps.weight"),
    ("qwen2moe", "mlp.shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"),
    ("qwen2moe", "mlp.shared_expert.up_proj.weight", "ffn_up_shexp.weight"),
    ("deepseek2", "mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"),
    ("deepseek2", "mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"),
    ("deepseek2", "mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
    ("deepseek2", "self_attn.q_a_proj.weight", "attn_q_a.weight"),
    ("deepseek2", "self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"),
    ("deepseek2", "self_attn.q_b_proj.weight", "attn_q_b.weight"),
    ("deepseek2", "self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"),
    ("deepseek2", "self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"),
    ("deepseek2", "self_attn.kv_b_proj.weight", "attn_kv_b.weight"),
    ("deepseek2", "self_attn.kv_b_proj.weight", "attn_k_b.weight"),
    ("deepseek2", "self_attn.kv_b_proj.weight", "attn_v_b.weight"),
    ("gpt-oss", "self_attn.sinks", "attn_sinks.weight"),
    ("gpt-oss", "mlp.router.weight", "ffn_gate_inp.weight"),
    ("gpt-oss", "mlp.router.bias", "ffn_gate_inp.bias"),
    ("gpt-oss", "mlp.experts.gate_up_proj", "ffn_gate_exps.weight"),
    ("gpt-oss", "mlp.experts.gate_up_proj_bias", "ffn_up_exps.bias"),
    ("gpt-oss", "mlp.experts.down_proj_bias", "ffn_down_exps.bias"),
    ("gpt-oss", "post_attention_layernorm.weight", "post_attention_norm.weight"),
]


@pytest.mark.parametrize(("architecture", "name", "stored"), NAMES)
def test_merge_filter_matches_names_of_experts_and_mla(architecture: str, name: str, stored: str) -> None:
    assert any(f"layers.0.{name}" in each for each in hugging_face_names(f"blk.0.{stored}", architecture))


ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
# The converter splits these before it translates their parts.
PARTS = {
    "ffn_gate_exps": ("gate_up_proj", "gate_proj"),
    "ffn_up_exps": ("gate_up_proj", "up_proj"),
    "attn_k_b": ("kv_b_proj", "k_b_proj"),
    "attn_v_b": ("kv_b_proj", "v_b_proj"),
}


@pytest.mark.parametrize(("architecture", "stored"), sorted({(each[0], each[2]) for each in NAMES}))
def test_merge_names_of_tensors_are_the_converters(architecture: str, stored: str) -> None:
    mapped = gguf.get_tensor_name_map(ARCHITECTURES[architecture], 1)
    stem = stored.rpartition(".")[0]
    names = [name.replace(*PARTS.get(stem, ("", ""))) for name in hugging_face_names(f"blk.0.{stored}", architecture)]
    suffixes = (".weight", ".bias", "_bias")
    found = {mapped.get_name(name, try_suffixes=suffixes) or name for name in names}
    assert {re.sub(r"(.weight|.bias|_bias)$", "", name) for name in found} == {f"blk.0.{stem}"}
