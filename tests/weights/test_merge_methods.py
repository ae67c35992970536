"""Merges of real files, compared with the formulas of mergekit 0.1.5 in double precision, and its names of tensors."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import write_file
from merges import Weights, slerp, write_merge, write_weights

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.gguf.contents import TYPE_NUMBERS
from cerebrum_cli.weights import execute as working
from cerebrum_cli.weights.codec import quantize
from cerebrum_cli.weights.tensor_names import hugging_face_names

pytestmark = pytest.mark.slow

Model = Mapping[str, Weights]
LAYERS = 3
ROWS, WIDTH = 80, 256  # of each matrix
HEAD, NORM, EMBEDDING = "output.weight", "output_norm.weight", "token_embd.weight"
MATRICES = ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
QUANTIZED = {"attn_q": "Q8_0", "attn_output": "F16", "ffn_down": "Q6_K", "ffn_up": "Q4_K"}  # others: F32
# Largest distance of neighboring values of a type, as a share of the largest of 256 weights.
STEPS = {"F32": 1e-6, "F16": 2**-10, "Q8_0": 1.01 / 127, "Q6_K": 1 / 16, "Q4_K": 2 / 7}


def random_model(seed: int) -> dict[str, Weights]:
    random = np.random.default_rng(seed)
    matrices = [f"blk.{layer}.{part}.weight" for layer in range(LAYERS) for part in MATRICES]
    norms = [*(f"blk.{layer}.attn_norm.weight" for layer in range(LAYERS)), NORM]
    drawn = {name: random.standard_normal((ROWS, WIDTH)) / 16 for name in (EMBEDDING, *matrices, HEAD)}
    drawn |= {name: random.uniform(0.5, 2.0, WIDTH) for name in norms}
    return {name: each.astype(np.float32).astype(np.float64) for name, each in drawn.items()}


def related_model(first: Model) -> dict[str, Weights]:
    """Random weights, with tensors that are parallel, opposite, similar and zero relative to those of a model."""
    noise = np.random.default_rng(7).standard_normal((ROWS, WIDTH)) / 16
    return random_model(1) | {
        NORM: 3 * first[NORM],
        "blk.0.attn_q.weight": -2 * first["blk.0.attn_q.weight"],
        "blk.0.ffn_up.weight": first["blk.0.ffn_up.weight"] + 0.5 * noise,
        "blk.1.ffn_up.weight": first["blk.1.ffn_up.weight"] + 0.01 * noise,
        "blk.1.attn_k.weight": 0 * first["blk.1.attn_k.weight"],
    }


def encoded(values: Weights, kind: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
    return np.frombuffer(quantize(rows, TYPE_NUMBERS[kind]), np.uint8).reshape(len(rows), -1)


def write_quantized(path: Path, model: Model) -> Path:
    """Write a model of several types, without a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", LAYERS)
    for name, values in model.items():
        kind = QUANTIZED.get(name.split(".")[-2], "F32")
        data = values.astype(np.float32) if kind == "F32" else encoded(values, kind)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    write_file(writer)
    return path


def read(path: Path) -> dict[str, Weights]:
    """Dequantize the weights of a file with the `gguf` package, row length last."""
    return {
        each.name: gguf.dequantize(each.data, each.tensor_type).reshape(tuple(reversed(each.shape))).astype(np.float64)
        for each in gguf.GGUFReader(path).tensors
    }


def contents(path: Path) -> dict[str, tuple[str, bytes]]:
    return {each.name: (each.tensor_type.name, each.data.tobytes()) for each in gguf.GGUFReader(path).tensors}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 7_000)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, first = tmp_path_factory.mktemp("merges"), random_model(0)
    made = {"a": first, "b": related_model(first), "c": random_model(2)}
    files = {name: write_weights(folder / f"{name}.gguf", model, layers=LAYERS) for name, model in made.items()}
    return files | {f"{name} quantized": write_quantized(folder / f"{name}.q.gguf", made[name]) for name in "ab"}


def merge(recipe: Mapping[str, Any], sources: Sequence[Path], out: Path) -> Path:
    write_merge(json.dumps(recipe), {name: [path] for name, path in zip("abc", sources, strict=False)}, out)
    return out


# mergekit's formulas: merge_methods/linear.py and generalized_task_arithmetic.py.


def linear(tensors: Sequence[Weights], shares: Sequence[float], normalize: bool = True) -> Weights:
    total = np.sum([share * each for share, each in zip(shares, tensors, strict=True)], axis=0)
    return np.asarray(total / sum(shares) if normalize else total)


def task_arithmetic(
    tensors: Sequence[Weights], shares: Sequence[float], normalize: bool = False, factor: float = 1.0
) -> Weights:
    base, *others = tensors
    delta = np.sum([share * (each - base) for share, each in zip(shares, others, strict=True)], axis=0)
    if normalize:
        delta = delta / (sum(shares) if abs(sum(shares)) >= 1e-8 else 1.0)
    return np.asarray(base + factor * delta)


def group(name: str) -> str:
    if "_norm" in name or not name.startswith("blk."):
        return "*"
    return "self_attn" if "attn_" in name else "mlp"


def weighted(*values: float | list[Any], **more: Any) -> dict[str, Any]:
    """Recipe of the models `a`, `b` and so on with these weights."""
    sources = [{"model": name, "parameters": {"weight": value}} for name, value in zip("abc", values, strict=False)]
    return {"models": sources, **more}


GRADIENTS = {"self_attn": [0, 0.5, 1], "mlp": [1, 0.2, 0], "*": [0.2, 0.4, 0.7]}
BY_GROUP: list[Any] = [{"filter": name, "value": values} for name, values in GRADIENTS.items()]


def by_group(name: str) -> float:
    """Value of the parameter above for a tensor; outside of layers it is the first."""
    depth = int(name.split(".")[1]) / (LAYERS - 1) if name.startswith("blk.") else 0.0
    return float(np.interp(depth, (0, 0.5, 1), GRADIENTS[group(name)]))


Expected = Callable[[str, Sequence[Weights]], Weights]
TASK_VECTORS = {"merge_method": "task_arithmetic", "base_model": "a"}
SLERP = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
CASES: Mapping[str, tuple[dict[str, Any], Expected]] = {
    "linear": (weighted(0.3, 0.5, merge_method="linear"), lambda name, tensors: linear(tensors, (0.3, 0.5))),
    "linear, not normalized": (
        weighted(0.3, 0.5, merge_method="linear", parameters={"normalize": False}),
        lambda name, tensors: linear(tensors, (0.3, 0.5), normalize=False),
    ),
    "linear, weights that add up to 0": (
        weighted(0.5, -0.5, merge_method="linear", parameters={"normalize": False}),
        lambda name, tensors: linear(tensors, (0.5, -0.5), normalize=False),
    ),
    "linear, more and less than all": (
        weighted(2.5, -0.5, merge_method="linear"),
        lambda name, tensors: linear(tensors, (2.5, -0.5)),
    ),
    "linear, by layer and by name": (
        weighted(BY_GROUP, 0.7, merge_method="linear"),
        lambda name, tensors: linear(tensors, (by_group(name), 0.7)),
    ),
    "slerp": ({**SLERP, "parameters": {"t": 0.3}}, lambda name, tensors: slerp(tensors, 0.3)),
    "slerp, by layer and by name": (
        {**SLERP, "parameters": {"t": BY_GROUP}},
        lambda name, tensors: slerp(tensors, by_group(name)),
    ),
    "slerp, past the end": ({**SLERP, "parameters": {"t": 1.2}}, lambda name, tensors: slerp(tensors, 1.2)),
    "task_arithmetic": (
        {**TASK_VECTORS, "models": [{"model": "b", "parameters": {"weight": 0.4}}]},
        lambda name, tensors: task_arithmetic(tensors, (0.4,)),
    ),
    "task_arithmetic, by layer and by name": (
        {**TASK_VECTORS, "models": [{"model": "b", "parameters": {"weight": BY_GROUP}}], "parameters": {"lambda": 1.5}},
        lambda name, tensors: task_arithmetic(tensors, (by_group(name),), factor=1.5),
    ),
}


def assert_close(name: str, actual: Weights, expected: Weights, tensors: Sequence[Weights], kind: str = "F32") -> None:
    """Check that weights equal the expected ones in a type, except for rounding before quantization."""
    rows = [np.abs(each).max(axis=-1, keepdims=True) for each in (expected, *tensors)]
    if kind != "F32":
        coded = gguf.dequantize(encoded(expected, kind), gguf.GGMLQuantizationType[kind])
        expected = coded.astype(np.float64).reshape(expected.shape)
        assert (actual == expected).mean() > 0.95, name  # a sum between two values may be rounded to either
    assert (np.abs(actual - expected) <= STEPS[kind] * np.maximum.reduce(rows)).all(), name


@pytest.mark.parametrize("kind", ["", " quantized"])
@pytest.mark.parametrize("case", CASES)
def test_merge_methods_match_the_formulas(case: str, kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    recipe, expected = CASES[case]
    paths = [models[f"{name}{kind}"] for name in "ab"]
    first, second = (read(path) for path in paths)
    path = merge(recipe, paths, tmp_path / "made.gguf")
    kinds, made = {name: kind for name, (kind, _) in contents(path).items()}, read(path)
    assert kinds == {name: kind for name, (kind, _) in contents(paths[0]).items()}
    for name, one in first.items():
        tensors = (one, second[name])
        assert_close(name, made[name], expected(name, tensors), tensors, kinds[name])


def test_merge_task_arithmetic_normalizes_its_weights(models: dict[str, Path], tmp_path: Path) -> None:
    paths = [models[name] for name in "abc"]
    weights = [read(path) for path in paths]
    for normalize, shares in ((True, (0.4, 0.9)), (False, (0.4, 0.9)), (True, (0.5, -0.5))):
        rows = weighted(0.0, *shares)["models"][1:]
        recipe = {**TASK_VECTORS, "models": rows, "parameters": {"normalize": normalize, "lambda": 0.7}}
        for name, made in read(merge(recipe, paths, tmp_path / "made.gguf")).items():
            tensors = [model[name] for model in weights]
            assert_close(name, made, task_arithmetic(tensors, shares, normalize, 0.7), tensors)


def test_merge_passthrough_scales_the_tensors_of_its_filter(models: dict[str, Path], tmp_path: Path) -> None:
    scale = [{"filter": "o_proj", "value": 0.5}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
    row, source = {"model": "a", "layer_range": [0, LAYERS], "parameters": {"scale": scale}}, models["a quantized"]
    path = merge({"merge_method": "passthrough", "slices": [{"sources": [row]}]}, [source], tmp_path / "made.gguf")
    made, before, after = read(path), contents(source), contents(path)
    for name, values in read(source).items():
        factor = {"attn_output": 0.5, "ffn_down": 0.0}.get(name.split(".")[-2], 1.0)
        assert np.abs(made[name] - factor * values).max() <= 2**-11 * np.abs(values).max(), name
        assert factor != 1 or after[name] == before[name]


def test_merge_of_a_model_with_itself_has_the_same_bytes(models: dict[str, Path], tmp_path: Path) -> None:
    source = models["b quantized"]
    shares = ((0.5, 0.5), (0.1, 0.3), (1.0, 0.0), (3.0, -2.0), (-1.5, 2.5), (7.0, 5.0))
    for recipe in (*(weighted(*each, merge_method="linear") for each in shares), {**SLERP, "parameters": {"t": 0.37}}):
        assert contents(merge(recipe, [source, source], tmp_path / "made.gguf")) == contents(source)


@pytest.mark.parametrize(("t", "end"), [(0, "a"), (1.0, "b")])
def test_merge_slerp_copies_the_bytes_at_both_ends(t: float, end: str, models: dict[str, Path], tmp_path: Path) -> None:
    made = merge(
        {**SLERP, "parameters": {"t": t}}, [models[f"{each} quantized"] for each in "ab"], tmp_path / "made.gguf"
    )
    assert contents(made) == contents(models[f"{end} quantized"])


PARTIAL: list[Any] = [{"filter": "self_attn", "value": 0.5}]
UNEVEN: list[Any] = [{"filter": "mlp", "value": -0.5}, {"value": 0.5}]


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (weighted(0.5, -0.5, merge_method="linear"), "the weights for token_embd.weight add up to 0"),
        (weighted(0, 0, merge_method="linear"), "the weights for token_embd.weight add up to 0"),
        (weighted(UNEVEN, 0.5, merge_method="linear"), "the weights for blk.0.ffn_gate.weight add up to 0"),
        (weighted(0.5, PARTIAL, merge_method="linear"), "the recipe has no weight of b for token_embd.weight"),
        (
            {**TASK_VECTORS, "models": [{"model": "b", "parameters": {"weight": PARTIAL}}]},
            "the recipe has no weight of b for token_embd.weight",
        ),
        ({**SLERP, "parameters": {"t": PARTIAL}}, "the recipe has no t for token_embd.weight"),
    ],
)
def test_merge_reports_weights_that_are_missing_or_sum_to_zero(
    recipe: dict[str, Any], problem: str, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(MergeError) as caught:
        merge(recipe, [models[name] for name in "ab"], tmp_path / "made.gguf")
    assert caught.value.message == problem
    assert not list(tmp_path.iterdir())


# What the converter stores differently: norms plus 1, and factors of RoPE.


def whole(method: str, *sources: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Recipe of the whole models `a`, `b` and so on, each with its parameters."""
    models = [{"model": name, "parameters": source} for name, source in zip("abc", sources, strict=False)]
    return {"merge_method": method, "models": models, **more}


@pytest.mark.parametrize("constant", ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"])
def test_merge_copies_factors_of_rope(constant: str, tmp_path: Path) -> None:
    models = [{EMBEDDING: np.ones((6, 32)), constant: np.full(16, value), NORM: np.ones(32)} for value in (8.0, 2.0)]
    paths = [write_weights(tmp_path / f"{number}.gguf", model) for number, model in enumerate(models)]
    overweight = {"weight": 1.1}
    for recipe, norm, factor in (
        (whole("passthrough", {"scale": 0.5}), 0.5, 8.0),
        (whole("linear", overweight, overweight, parameters={"normalize": False}), 2.2, 8.0),
        (whole("slerp", {}, {}, base_model="a", parameters={"t": 0.5}), 1.0, 8.0),
        (whole("slerp", {}, {}, base_model="b", parameters={"t": 0.5}), 1.0, 2.0),
        (whole("task_arithmetic", {}, {"weight": 0.5}, base_model="a"), 1.0, 8.0),
    ):
        made = read(merge(recipe, paths[: len(recipe["models"])], tmp_path / "made.gguf"))
        np.testing.assert_allclose(made[NORM], norm, rtol=1e-6)
        assert (made[constant] == factor).all(), recipe


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


@pytest.mark.parametrize("architecture", ADDED)
def test_merge_combines_norms_without_the_added_one(architecture: str, tmp_path: Path) -> None:
    paths = []
    for number, values in enumerate(((1.0, 0, 0, 0), (0, 2.0, 0, 0))):
        stored = np.array(values)
        tensors = {EMBEDDING: stored, **dict.fromkeys(STORED_NORMS, stored + ADDED[architecture])}
        paths.append(write_weights(tmp_path / f"{number}.gguf", tensors, architecture))
    for recipe, expected in NORMS.values():
        for name, made in read(merge(recipe, paths[: len(recipe["models"])], tmp_path / "made.gguf")).items():
            added = ADDED[architecture] if "norm" in name else 0.0
            np.testing.assert_allclose(made, np.array(expected) + added, rtol=1e-6, atol=1e-6, err_msg=name)


def test_merge_leaves_the_norm_of_linear_attention_as_stored(tmp_path: Path) -> None:
    tensors = {EMBEDDING: np.ones(4), "blk.0.attn_norm.weight": np.full(4, 3.0), "blk.0.ssm_norm.weight": np.full(4, 3)}
    path = write_weights(tmp_path / "a.gguf", tensors, "qwen3next")
    made = read(merge(whole("passthrough", {"scale": 0.5}), [path], tmp_path / "made.gguf"))
    assert (made["blk.0.attn_norm.weight"] == 2.0).all()
    assert (made["blk.0.ssm_norm.weight"] == 1.5).all()


def test_merge_slerp_takes_heads_of_one_tensor_together(tmp_path: Path) -> None:
    """One arc for a tensor whose third dimension is heads, not experts."""
    random, name = np.random.default_rng(3), "blk.0.attn_k_b.weight"
    ends = [random.normal(size=(4, 8, 32)).astype(np.float32).astype(np.float64) for _ in range(2)]
    paths = [
        write_weights(tmp_path / f"{at}.gguf", {EMBEDDING: np.ones(32), name: each}) for at, each in enumerate(ends)
    ]
    recipe = whole("slerp", {}, {}, base_model="a", parameters={"t": 0.3})
    made = read(merge(recipe, paths, tmp_path / "made.gguf"))
    np.testing.assert_allclose(made[name], slerp(ends, 0.3), rtol=1e-5, atol=1e-6)


# Names of Hugging Face files, and those of the tensors that llama.cpp's converter makes of them.

ARCHITECTURE_NAMES = {  # pairs of names, after `model.layers.0.` and `blk.0.`
    "llama": """
        self_attn.q_proj.weight attn_q.weight  self_attn.k_proj.weight attn_k.weight
        self_attn.v_proj.weight attn_v.weight  self_attn.o_proj.weight attn_output.weight
        mlp.gate_proj.weight ffn_gate.weight  mlp.up_proj.weight ffn_up.weight  mlp.down_proj.weight ffn_down.weight
        input_layernorm.weight attn_norm.weight  post_attention_layernorm.weight ffn_norm.weight
        block_sparse_moe.gate.weight ffn_gate_inp.weight  mlp.gate.weight ffn_gate_inp.weight
        block_sparse_moe.experts.w1.weight ffn_gate_exps.weight
        block_sparse_moe.experts.w2.weight ffn_down_exps.weight  block_sparse_moe.experts.w3.weight ffn_up_exps.weight
        mlp.experts.gate_up_proj ffn_gate_exps.weight  mlp.experts.gate_up_proj ffn_up_exps.weight
        mlp.experts.down_proj ffn_down_exps.weight""",
    "qwen3": "self_attn.q_norm.weight attn_q_norm.weight",
    "qwen3moe": "mlp.experts.gate_proj.weight ffn_gate_exps.weight",
    "qwen2moe": """
        mlp.shared_expert_gate.weight ffn_gate_inp_shexp.weight
        mlp.shared_expert.up_proj.weight ffn_up_shexp.weight""",
    "deepseek2": """
        mlp.shared_experts.gate_proj.weight ffn_gate_shexp.weight  mlp.gate.e_score_correction_bias exp_probs_b.bias
        self_attn.q_a_proj.weight attn_q_a.weight  self_attn.q_b_proj.weight attn_q_b.weight
        self_attn.kv_a_proj_with_mqa.weight attn_kv_a_mqa.weight  self_attn.kv_a_layernorm.weight attn_kv_a_norm.weight
        self_attn.kv_b_proj.weight attn_kv_b.weight  self_attn.kv_b_proj.weight attn_k_b.weight
        self_attn.kv_b_proj.weight attn_v_b.weight""",
    "gpt-oss": """
        self_attn.sinks attn_sinks.weight  mlp.router.weight ffn_gate_inp.weight
        mlp.experts.gate_up_proj ffn_gate_exps.weight  mlp.experts.gate_up_proj_bias ffn_up_exps.bias
        mlp.experts.down_proj_bias ffn_down_exps.bias  post_attention_layernorm.weight post_attention_norm.weight""",
}
NAMES = [
    (architecture, name, stored)
    for architecture, text in ARCHITECTURE_NAMES.items()
    for name, stored in zip(text.split()[::2], text.split()[1::2], strict=True)
]


@pytest.mark.parametrize(("architecture", "name", "stored"), NAMES)
def test_merge_filter_matches_names_of_hugging_face(architecture: str, name: str, stored: str) -> None:
    assert any(f"layers.0.{name}" in each for each in hugging_face_names(f"blk.0.{stored}", architecture))


# The converter splits these before it translates their parts.
