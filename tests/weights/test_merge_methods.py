"""Merges of real files, compared with the formulas of mergekit 0.1.5 in double precision."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from merges import Weights, write_merge, write_weights
from tiny_models import Shape, write_quantized

from cerebrum_cli.gguf.contents import TYPE_NUMBERS
from cerebrum_cli.weights import execute as working
from cerebrum_cli.weights.codec import quantize

pytestmark = pytest.mark.slow

SHAPE = Shape(layers=3, width=256, heads=4, kv_heads=2, ffn=256)
NORM, EMBEDDING = "output_norm.weight", "token_embd.weight"
# Largest distance of neighboring values of a type, as a share of the largest of 256 weights.
STEPS = {"F32": 1e-6, "F16": 2**-10, "Q8_0": 1.01 / 127, "Q6_K": 1 / 16, "Q4_K": 2 / 7}


def encoded(values: Weights, kind: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
    return np.frombuffer(quantize(rows, TYPE_NUMBERS[kind]), np.uint8).reshape(len(rows), -1)


def read(path: Path) -> dict[str, Weights]:
    """Dequantize the weights of a file with the `gguf` package, row length last."""
    return {
        each.name: gguf.dequantize(each.data, each.tensor_type).reshape(tuple(reversed(each.shape))).astype(np.float64)
        for each in gguf.GGUFReader(path).tensors
    }


def contents(path: Path) -> dict[str, tuple[str, bytes]]:
    return {each.name: (each.tensor_type.name, each.data.tobytes()) for each in gguf.GGUFReader(path).tensors}


@pytest.fixture(scope="module", params=["Q4_K_M", "Q8_0", "F16"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, encoding = tmp_path_factory.mktemp("merges"), request.param
    return [write_quantized(folder / f"{seed}.gguf", seed=seed, shape=SHAPE, encoding=encoding) for seed in range(3)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 7_000)


def merge(recipe: Mapping[str, Any], sources: Sequence[Path], out: Path) -> Path:
    write_merge(json.dumps(recipe), {name: [path] for name, path in zip("abc", sources, strict=False)}, out)
    return out


def weighted(*values: float, **more: Any) -> dict[str, Any]:
    """Recipe of the models `a`, `b` and so on with these weights."""
    sources = [{"model": name, "parameters": {"weight": value}} for name, value in zip("abc", values, strict=False)]
    return {"models": sources, **more}


def combined(tensors: Sequence[Weights], shares: Sequence[float], method: str) -> Weights:
    """mergekit's formulas: merge_methods/linear.py, and generalized_task_arithmetic.py on the first model."""
    base = tensors[0] if method == "task_arithmetic" else np.zeros_like(tensors[0])
    total = np.sum([share * (each - base) for share, each in zip(shares, tensors, strict=True)], axis=0)
    return np.asarray(base + total if method == "task_arithmetic" else total / sum(shares))


def assert_close(name: str, actual: Weights, expected: Weights, tensors: Sequence[Weights], kind: str) -> None:
    """Check that weights equal the expected ones in a type, except for rounding before quantization."""
    rows = [np.abs(each).max(axis=-1, keepdims=True) for each in (expected, *tensors)]
    if kind != "F32":
        coded = gguf.dequantize(encoded(expected, kind), gguf.GGMLQuantizationType[kind])
        expected = coded.astype(np.float64).reshape(expected.shape)
        assert (actual == expected).mean() > 0.95, name  # a sum between two values may be rounded to either
    assert (np.abs(actual - expected) <= STEPS[kind] * np.maximum.reduce(rows)).all(), name


CASES = [
    ("linear", (0.3, 0.5)),
    ("linear", (2.5, -0.5)),
    ("task_arithmetic", (0.0, 0.4)),
    ("task_arithmetic", (0.0, 0.4, 0.9)),
    ("task_arithmetic", (0.0, 0.5, -0.5)),
]


@pytest.mark.parametrize(("method", "shares"), CASES)
def test_methods_match_the_formulas(method: str, shares: tuple[float, ...], models: list[Path], tmp_path: Path) -> None:
    paths = models[: len(shares)]
    recipe = weighted(*shares, merge_method=method)
    if method == "task_arithmetic":
        recipe |= {"base_model": "a", "models": recipe["models"][1:]}
    made = merge(recipe, paths, tmp_path / "made.gguf")
    kinds = {name: kind for name, (kind, _) in contents(made).items()}
    assert kinds == {name: kind for name, (kind, _) in contents(paths[0]).items()}
    sources = [read(path) for path in paths]
    for name, actual in read(made).items():
        tensors = [source[name] for source in sources]
        assert_close(name, actual, combined(tensors, shares, method), tensors, kinds[name])


def test_merge_of_a_model_with_itself_has_the_same_bytes(models: list[Path], tmp_path: Path) -> None:
    source = models[0]
    for shares in ((0.5, 0.5), (0.1, 0.3), (1.0, 0.0), (3.0, -2.0), (-1.5, 2.5), (7.0, 5.0)):
        recipe = weighted(*shares, merge_method="linear")
        assert contents(merge(recipe, [source, source], tmp_path / "made.gguf")) == contents(source)


# What the converter stores differently: norms plus 1, and factors of RoPE.


@pytest.mark.parametrize("constant", ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"])
def test_merge_copies_factors_of_rope(constant: str, tmp_path: Path) -> None:
    models = [{EMBEDDING: np.ones((6, 32)), constant: np.full(16, value), NORM: np.ones(32)} for value in (8.0, 2.0)]
    paths = [write_weights(tmp_path / f"{number}.gguf", model) for number, model in enumerate(models)]
    for base, factor in (("a", 8.0), ("b", 2.0)):
        for method in ("linear", "task_arithmetic"):
            recipe = weighted(1.1, 1.1, merge_method=method, base_model=base)
            assert (read(merge(recipe, paths, tmp_path / "made.gguf"))[constant] == factor).all(), recipe


# Recipes, and the weights of a norm by hand where the models have (1, 0, 0, 0) and (0, 2, 0, 0).
NORMS: Sequence[tuple[dict[str, Any], tuple[float, ...]]] = (
    (weighted(1, 3, merge_method="linear"), (0.25, 1.5, 0, 0)),
    (weighted(0, 0.5, merge_method="task_arithmetic", base_model="a"), (0.5, 1, 0, 0)),
)


@pytest.mark.parametrize(("architecture", "added"), [("gemma3", 1.0), ("llama", 0.0)])
def test_merge_combines_norms_without_the_added_one(architecture: str, added: float, tmp_path: Path) -> None:
    paths = []
    for number, values in enumerate(((1.0, 0, 0, 0), (0, 2.0, 0, 0))):
        tensors = {EMBEDDING: np.array(values), NORM: np.array(values) + added}
        paths.append(write_weights(tmp_path / f"{number}.gguf", tensors, architecture))
    for recipe, expected in NORMS:
        made = read(merge(recipe, paths, tmp_path / "made.gguf"))[NORM]
        np.testing.assert_allclose(made, np.array(expected) + added, rtol=1e-6, atol=1e-6)
