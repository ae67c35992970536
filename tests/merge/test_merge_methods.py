"""Merge methods on real files, compared to mergekit's formulas in double precision."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from gguf_files import write_file
from hypothesis import given
from hypothesis import strategies as st
from merges import OWN_TYPES, slerp, write_merge
from numpy.typing import NDArray
from tiny_models import Shape, write_chatml

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.merge import weights as working
from cerebrum_cli.merge.methods import slerp_coefficients
from cerebrum_cli.merge.target_types import TYPE_NUMBERS, Target

pytestmark = pytest.mark.slow

Weights = NDArray[np.float64]
Model = Mapping[str, Weights]
Models = Mapping[str, "Source"]

LAYERS = 3
ROWS = 80  # of each matrix; more only take longer
CODEC = LlamaCodec()


class TypeMix(NamedTuple):
    """Types of a file's matrices: of most, and of those that llama.cpp gives more bits."""

    most: str
    some: str

    def of(self, name: str, dimensions: int) -> str:
        """Type of a tensor."""
        if dimensions == 1:
            return "F32"
        return (
            self.some if name == "output.weight" or name.endswith(("ffn_down.weight", "attn_v.weight")) else self.most
        )


class Source(NamedTuple):
    """A file and its dequantized weights."""

    path: Path
    weights: Model


TYPE_MIXES = tuple(TypeMix(*names) for names in (("F32", "F32"), ("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_K", "Q6_K")))
# Largest distance of neighboring values of a type, as a share of the largest of 256 weights.
STEPS = {"F32": 1e-6, "F16": 2**-10, "Q8_0": 1.01 / 127, "Q6_K": 1 / 16, "Q4_K": 2 / 7}


def read(path: Path) -> dict[str, Weights]:
    """Dequantize the weights of a file with the `gguf` package, row length last."""
    found = {}
    for each in gguf.GGUFReader(path).tensors:
        shape = tuple(int(length) for length in reversed(each.shape))
        found[each.name] = gguf.dequantize(each.data, each.tensor_type).reshape(shape).astype(np.float64)
    return found


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    """Types and bytes of a file's tensors."""
    return {each.name: (int(each.tensor_type), each.data.tobytes()) for each in gguf.GGUFReader(path).tensors}


def types(path: Path) -> dict[str, str]:
    """Types of a file's tensors."""
    return {each.name: each.tensor_type.name for each in gguf.GGUFReader(path).tensors}


def encoded(values: Weights, name: str) -> NDArray[np.uint8]:
    """Quantize rows of weights."""
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
    return np.frombuffer(CODEC.quantize(rows, TYPE_NUMBERS[name]), np.uint8).reshape(len(rows), -1)


def rounded(values: Weights, name: str) -> Weights:
    """Quantize weights and dequantize them again."""
    weights: Weights = gguf.dequantize(encoded(values, name), gguf.GGMLQuantizationType[name]).astype(np.float64)
    return weights.reshape(values.shape)


def write(path: Path, model: Model, kind: TypeMix) -> Source:
    """Write a model without a vocabulary, which would take longer to read than all its weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", LAYERS)
    for name, values in model.items():
        type_name = kind.of(name, values.ndim)
        data = encoded(values, type_name)
        rows = data.view(np.float32) if type_name == "F32" else data
        shape = (*values.shape[:-1], rows.shape[-1])
        writer.add_tensor(name, rows.reshape(shape), raw_dtype=gguf.GGMLQuantizationType[type_name])
    write_file(writer)
    return Source(path, read(path))


def with_edge_cases(model: dict[str, Weights], first: Model) -> dict[str, Weights]:
    """Replace tensors by parallel, opposite, similar and zero ones relative to those of the first model."""
    random = np.random.default_rng(7)
    noise = random.standard_normal((ROWS, 256)) / 16
    model = {name: random.uniform(0.5, 2.0, len(each)) if "_norm" in name else each for name, each in model.items()}
    return model | {
        "output_norm.weight": 3 * first["output_norm.weight"],
        "blk.0.attn_q.weight": -2 * first["blk.0.attn_q.weight"],
        "blk.0.ffn_up.weight": first["blk.0.ffn_up.weight"] + 0.5 * noise,
        "blk.1.ffn_up.weight": first["blk.1.ffn_up.weight"] + 0.01 * noise,
        "blk.1.attn_k.weight": 0 * first["blk.1.attn_k.weight"],
    }


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute larger tensors in several chunks, the last of them shorter."""
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 7_000)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Files by model and type: `a` and `b`, and `c` in one type only."""
    folder = tmp_path_factory.mktemp("merges")
    shape = Shape(layers=LAYERS, width=256, ffn=256)
    paths = (write_chatml(folder / f"{seed}.gguf", seed=seed, shape=shape) for seed in range(3))
    first, second, third = ({name: each[:ROWS] for name, each in read(path).items()} for path in paths)
    second = with_edge_cases(second, first)
    made = {(name, kind): weights for name, weights in (("a", first), ("b", second)) for kind in TYPE_MIXES}
    made[("c", TYPE_MIXES[1])] = third
    return {
        f"{name} {kind.most}": write(folder / f"{name}.{kind.most}.gguf", weights, kind)
        for (name, kind), weights in made.items()
    }


def merge(recipe: Mapping[str, Any], sources: Models, out: Path, target: Target = OWN_TYPES) -> Path:
    """Write the merge of a recipe of these models."""
    whole = write_merge(
        json.dumps(recipe), {name: [source.path] for name, source in sources.items()}, out, target=target
    )
    return whole.path


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


def depth(name: str) -> float:
    """Relative depth of a tensor's layer, from 0 to 1."""
    if name.startswith("blk."):
        return int(name.split(".")[1]) / (LAYERS - 1)
    return 0.0


def group(name: str) -> str:
    """Filter of mergekit's examples that matches a tensor."""
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
    """Value of the parameter above for a tensor."""
    return float(np.interp(depth(name), (0, 0.5, 1), GRADIENTS[group(name)]))


Expected = Callable[[str, Sequence[Weights]], Weights]
TASK_VECTORS = {"merge_method": "task_arithmetic", "base_model": "a"}
SLERP = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
CASES: Mapping[str, tuple[dict[str, Any], Expected]] = {
    "linear": (weighted(0.3, 0.5, merge_method="linear"), lambda name, tensors: linear(tensors, (0.3, 0.5))),
    "linear, not normalized": (
        weighted(0.3, 0.5, merge_method="linear", parameters={"normalize": False}),
        lambda name, tensors: linear(tensors, (0.3, 0.5), normalize=False),
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


def assert_close(name: str, actual: Weights, expected: Weights, kind: str, tensors: Sequence[Weights]) -> None:
    """Check that weights equal the expected ones in a type, except for rounding before quantization."""
    rows = [np.abs(each).max(axis=-1, keepdims=True) for each in (expected, *tensors)]
    step = STEPS[kind] * np.maximum.reduce(rows)
    expected_weights = rounded(expected, kind)
    assert (np.abs(actual - expected_weights) <= step).all(), name
    if kind != "F32":
        assert (actual == expected_weights).mean() > 0.95, name  # a sum between two values may be rounded to either


KIND = pytest.mark.parametrize("kind", TYPE_MIXES, ids=lambda kind: kind.most)


@KIND
@pytest.mark.parametrize("case", CASES)
def test_merge_methods_match_the_formulas(case: str, kind: TypeMix, models: Models, tmp_path: Path) -> None:
    recipe, expected = CASES[case]
    sources = {name: models[f"{name} {kind.most}"] for name in "ab"}
    first, second = (source.weights for source in sources.values())
    own = read(merge(recipe, sources, tmp_path / "own.gguf"))
    full = read(merge(recipe, sources, tmp_path / "full.gguf", Target(type="F32")))
    assert own.keys() == full.keys() == first.keys()
    for name, one in first.items():
        tensors = (one, second[name])
        expected_weights = expected(name, tensors)
        assert_close(name, full[name], expected_weights, "F32", tensors)
        assert_close(name, own[name], expected_weights, kind.of(name, expected_weights.ndim), tensors)


def test_merge_task_arithmetic_normalizes_its_weights(models: Models, tmp_path: Path) -> None:
    sources = {name: models[f"{name} F16"] for name in "abc"}
    for normalize, shares in ((True, (0.4, 0.9)), (False, (0.4, 0.9)), (True, (0.5, -0.5))):
        rows = weighted(0.0, *shares)["models"][1:]
        recipe = {**TASK_VECTORS, "models": rows, "parameters": {"normalize": normalize, "lambda": 0.7}}
        made = read(merge(recipe, sources, tmp_path / "made.gguf", Target(type="F32")))
        for name in made:
            tensors = [source.weights[name] for source in sources.values()]
            assert_close(name, made[name], task_arithmetic(tensors, shares, normalize, 0.7), "F32", tensors)


@pytest.mark.parametrize("base", "abc")
def test_merge_linear_writes_the_types_of_the_base_model(base: str, models: Models, tmp_path: Path) -> None:
    sources = {"a": models["a Q4_K"], "b": models["b Q8_0"], "c": models["c F16"]}
    shares = (1.0, 2.0, 0.5)
    path = merge(weighted(*shares, merge_method="linear", base_model=base), sources, tmp_path / "made.gguf")
    assert types(path) == types(sources[base].path)
    for name, made in read(path).items():
        tensors = [source.weights[name] for source in sources.values()]
        assert_close(name, made, linear(tensors, shares), types(path)[name], tensors)


@KIND
def test_merge_passthrough_scales_the_tensors_of_its_filter(kind: TypeMix, models: Models, tmp_path: Path) -> None:
    scale = [{"filter": "o_proj", "value": 0.5}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]
    row = {"model": "a", "layer_range": [0, LAYERS], "parameters": {"scale": scale}}
    source = models[f"a {kind.most}"]
    path = merge({"merge_method": "passthrough", "slices": [{"sources": [row]}]}, {"a": source}, tmp_path / "made.gguf")
    made, before, after = read(path), contents(source.path), contents(path)
    for name, values in source.weights.items():
        factor = {"attn_output": 0.5, "ffn_down": 0.0}.get(name.split(".")[-2], 1.0)
        assert np.abs(made[name] - factor * values).max() <= 2**-11 * np.abs(values).max(), name
        assert factor != 1 or after[name] == before[name]


SHARES = ((0.5, 0.5), (0.1, 0.3), (1.0, 0.0), (3.0, -2.0), (-1.5, 2.5), (7.0, 5.0))


@KIND
def test_merge_of_a_model_with_itself_has_the_same_bytes(kind: TypeMix, models: Models, tmp_path: Path) -> None:
    source = models[f"b {kind.most}"]
    recipes = [weighted(*shares, merge_method="linear") for shares in SHARES]
    for recipe in (*recipes, {**SLERP, "parameters": {"t": 0.37}}):
        made = merge(recipe, {"a": source, "b": source}, tmp_path / "made.gguf")
        assert contents(made) == contents(source.path)


@KIND
def test_merge_of_a_model_with_its_copy_differs_by_rounding(kind: TypeMix, models: Models, tmp_path: Path) -> None:
    source, path = models[f"b {kind.most}"], tmp_path / "copy.gguf"
    path.write_bytes(source.path.read_bytes())  # a merge cannot know that it is the same model
    recipes = [weighted(*shares, merge_method="linear") for shares in SHARES]
    recipes += [{**SLERP, "parameters": {"t": t}} for t in (0.37, 1.5)]
    recipes.append({**TASK_VECTORS, "models": [{"model": "b", "parameters": {"weight": -3.0}}]})
    for recipe in recipes:
        made = merge(recipe, {"a": source, "b": source._replace(path=path)}, tmp_path / "made.gguf")
        for name, values in read(made).items():
            before = source.weights[name]
            step = STEPS[kind.of(name, values.ndim)] * np.abs(before).max(axis=-1, keepdims=True)
            assert (np.abs(values - before) <= step).all(), (recipe, name)


@KIND
@pytest.mark.parametrize(("t", "end"), [(0, "a"), (1, "b"), (0.0, "a"), (1.0, "b")])
def test_merge_slerp_copies_the_bytes_at_both_ends(
    t: float, end: str, kind: TypeMix, models: Models, tmp_path: Path
) -> None:
    sources = {name: models[f"{name} {kind.most}"] for name in "ab"}
    made = merge({**SLERP, "parameters": {"t": t}}, sources, tmp_path / "made.gguf")
    assert contents(made) == contents(sources[end].path)


def test_merge_slerp_writes_the_types_of_the_base_model(models: Models, tmp_path: Path) -> None:
    sources = {"a": models["a Q8_0"], "b": models["b Q4_K"]}
    path = merge({**SLERP, "parameters": {"t": 1}}, sources, tmp_path / "made.gguf")
    assert types(path) == types(sources["a"].path)
    for name, made in read(path).items():
        end = sources["b"].weights[name]
        assert_close(name, made, end, types(path)[name], [end])


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
    recipe: dict[str, Any], problem: str, models: Models, tmp_path: Path
) -> None:
    with pytest.raises(MergeError) as caught:
        merge(recipe, {name: models[f"{name} F16"] for name in "ab"}, tmp_path / "made.gguf")
    assert caught.value.message == problem
    assert not list(tmp_path.iterdir())


def test_merge_linear_unnormalized_weights_may_sum_to_zero(models: Models, tmp_path: Path) -> None:
    sources = {name: models[f"{name} F16"] for name in "ab"}
    recipe = weighted(0.5, -0.5, merge_method="linear", parameters={"normalize": False})
    for name, made in read(merge(recipe, sources, tmp_path / "made.gguf", Target(type="F32"))).items():
        tensors = [source.weights[name] for source in sources.values()]
        assert_close(name, made, 0.5 * tensors[0] - 0.5 * tensors[1], "F32", tensors)


cosines = st.floats(-0.9995, 0.9995)
ratios = st.floats(0, 1)
norms = st.floats(1e-3, 1e3)


@given(cosine=cosines | st.floats(-1, 1), first=norms, second=norms)
def test_slerp_starts_and_ends_at_its_ends(cosine: float, first: float, second: float) -> None:
    product = cosine * first * second
    assert slerp_coefficients(0.0, first, second, product) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert slerp_coefficients(1.0, first, second, product) == pytest.approx((0.0, 1.0), abs=1e-12)


@given(t=ratios, cosine=cosines)
def test_slerp_keeps_the_length_and_divides_the_angle(t: float, cosine: float) -> None:
    one, other = slerp_coefficients(t, 1.0, 1.0, cosine)
    assert one**2 + other**2 + 2 * one * other * cosine == pytest.approx(1.0, abs=1e-9)
    assert one + other * cosine == pytest.approx(math.cos(t * math.acos(cosine)), abs=1e-9)


@given(t=ratios, cosine=cosines | st.floats(-1, 1), first=norms, second=norms)
def test_slerp_is_symmetric(t: float, cosine: float, first: float, second: float) -> None:
    product = cosine * first * second
    there, back = slerp_coefficients(t, first, second, product), slerp_coefficients(1 - t, second, first, product)
    assert there == pytest.approx(back[::-1], abs=1e-9)


@given(t=ratios, cosine=st.sampled_from([-1.0, -0.9996, 0.9996, 1.0]), first=norms, second=norms)
def test_slerp_of_parallel_vectors_is_linear(t: float, cosine: float, first: float, second: float) -> None:
    assert slerp_coefficients(t, first, second, cosine * first * second) == (1 - t, t)


@given(t=ratios, other=norms)
def test_slerp_treats_a_zero_vector_as_orthogonal(t: float, other: float) -> None:
    expected = (math.cos(t * math.pi / 2), math.sin(t * math.pi / 2))
    assert slerp_coefficients(t, 0.0, other, 0.0) == pytest.approx(expected, abs=1e-12)
