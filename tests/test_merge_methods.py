"""Merges of real files against mergekit's published formulas, written out again here in double precision."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_models import Shape, write_chatml

from cerebrum_cli.core.errors import MergeError
from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.gguf.adapter import read_table
from cerebrum_cli.merge import weights as working
from cerebrum_cli.merge.execute import execute, plan_files, require_supported_types
from cerebrum_cli.merge.metadata import Origin, Provenance
from cerebrum_cli.merge.methods import slerp_coefficients
from cerebrum_cli.merge.plan import plan_merge
from cerebrum_cli.merge.recipe import parse_recipe
from cerebrum_cli.merge.target_types import TYPE_NUMBERS, Target

Weights = NDArray[np.float64]
Model = Mapping[str, Weights]
Models = Mapping[str, "Source"]

LAYERS = 3
ROWS = 80  # of each matrix, which is as good as all
CODEC = LlamaCodec()
OWN_TYPES = Target()


class Kind(NamedTuple):
    """The types of a file's matrices: of most of them, and of those that llama.cpp gives more bits."""

    most: str
    some: str

    def of(self, name: str, dimensions: int) -> str:
        """Return the type of a tensor."""
        if dimensions == 1:
            return "F32"
        return (
            self.some if name == "output.weight" or name.endswith(("ffn_down.weight", "attn_v.weight")) else self.most
        )


class Source(NamedTuple):
    """A file and what is in it."""

    path: Path
    weights: Model


KINDS = tuple(Kind(*names) for names in (("F32", "F32"), ("F16", "F16"), ("Q8_0", "Q8_0"), ("Q4_K", "Q6_K")))
# Of the largest weight of 256: how far apart neighbouring weights can be.
STEPS = {"F32": 1e-6, "F16": 2**-10, "Q8_0": 1.01 / 127, "Q6_K": 1 / 16, "Q4_K": 2 / 7}


def read(path: Path) -> dict[str, Weights]:
    """Return the weights of a file as the `gguf` package reads them, row length last."""
    found = {}
    for each in gguf.GGUFReader(path).tensors:
        shape = tuple(int(length) for length in reversed(each.shape))
        found[each.name] = gguf.dequantize(each.data, each.tensor_type).reshape(shape).astype(np.float64)
    return found


def contents(path: Path) -> dict[str, tuple[int, bytes]]:
    """Return the types and bytes of a file's tensors."""
    return {each.name: (int(each.tensor_type), each.data.tobytes()) for each in gguf.GGUFReader(path).tensors}


def types(path: Path) -> dict[str, str]:
    """Return the types of a file's tensors."""
    return {each.name: each.tensor_type.name for each in gguf.GGUFReader(path).tensors}


def encoded(values: Weights, name: str) -> NDArray[np.uint8]:
    """Return rows of weights as a type."""
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
    return np.frombuffer(CODEC.quantize(rows, TYPE_NUMBERS[name]), np.uint8).reshape(len(rows), -1)


def rounded(values: Weights, name: str) -> Weights:
    """Return weights as they are in a type."""
    weights: Weights = gguf.dequantize(encoded(values, name), gguf.GGMLQuantizationType[name]).astype(np.float64)
    return weights.reshape(values.shape)


def write(path: Path, model: Model, kind: Kind) -> Source:
    """Write a model without a vocabulary, which takes longer to read than all its weights."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", LAYERS)
    for name, values in model.items():
        type_name = kind.of(name, values.ndim)
        data = encoded(values, type_name)
        rows = data.view(np.float32) if type_name == "F32" else data
        shape = (*values.shape[:-1], rows.shape[-1])
        writer.add_tensor(name, rows.reshape(shape), raw_dtype=gguf.GGMLQuantizationType[type_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Source(path, read(path))


def unlike(model: dict[str, Weights], first: Model) -> dict[str, Weights]:
    """Return a model with tensors that stand to those of the first as random ones never do."""
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
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the larger tensors worked out in several pieces, the last of them shorter."""
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 7_000)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return files by model and type: `a` and `b`, and `c` in one type only."""
    folder = tmp_path_factory.mktemp("merges")
    shape = Shape(layers=LAYERS, width=256, ffn=256)
    paths = (write_chatml(folder / f"{seed}.gguf", seed=seed, shape=shape) for seed in range(3))
    first, second, third = ({name: each[:ROWS] for name, each in read(path).items()} for path in paths)
    second = unlike(second, first)
    made = {(name, kind): weights for name, weights in (("a", first), ("b", second)) for kind in KINDS}
    made[("c", KINDS[1])] = third
    return {
        f"{name} {kind.most}": write(folder / f"{name}.{kind.most}.gguf", weights, kind)
        for (name, kind), weights in made.items()
    }


def merge(recipe: Mapping[str, Any], sources: Models, out: Path, target: Target = OWN_TYPES) -> Path:
    """Carry out a recipe, its models found by the names it has for them."""
    parsed = parse_recipe(json.dumps(recipe), "recipe.yaml")
    tables = {name: read_table(name, [sources[name].path]) for name in parsed.models}
    plan = plan_merge(parsed, tables, target, Provenance("merged", {name: Origin(name) for name in tables}))
    require_supported_types(plan, LlamaCodec)
    [whole] = execute(plan_files(plan, out), LlamaCodec, 2, lambda done, total: None)
    return whole.path


# mergekit's formulas: merge_methods/linear.py, slerp.py and generalized_task_arithmetic.py.


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


def slerp(tensors: Sequence[Weights], t: float) -> Weights:
    first, second = tensors
    norms = (math.sqrt(np.sum(each * each)) for each in tensors)
    one, other = (each / norm if norm > 1e-8 else each for each, norm in zip(tensors, norms, strict=True))
    cosine = float(np.sum(one * other))
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = math.acos(cosine)
    return (math.sin(angle - angle * t) * first + math.sin(angle * t) * second) / math.sin(angle)


def through(name: str) -> float:
    """Return how far through the layers a tensor stands."""
    if name.startswith("blk."):
        return int(name.split(".")[1]) / (LAYERS - 1)
    return 1.0 if name.startswith("output") else 0.0


def group(name: str) -> str:
    """Return which of the filters of mergekit's examples is meant for a tensor."""
    if "_norm" in name or not name.startswith("blk."):
        return "*"
    return "self_attn" if "attn_" in name else "mlp"


def each_of(*values: float | list[Any], **more: Any) -> dict[str, Any]:
    """Return the sources `a`, `b` and so on with a weight each."""
    sources = [{"model": name, "parameters": {"weight": value}} for name, value in zip("abc", values, strict=False)]
    return {"models": sources, **more}


GRADIENTS = {"self_attn": [0, 0.5, 1], "mlp": [1, 0.2, 0], "*": [0.2, 0.4, 0.7]}
BY_GROUP: list[Any] = [{"filter": name, "value": values} for name, values in GRADIENTS.items()]


def by_group(name: str) -> float:
    """Return the value of the parameter above for a tensor."""
    return float(np.interp(through(name), (0, 0.5, 1), GRADIENTS[group(name)]))


Expected = Callable[[str, Sequence[Weights]], Weights]
SHIFTED = {"merge_method": "task_arithmetic", "base_model": "a"}
TURNED = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
CASES: Mapping[str, tuple[dict[str, Any], Expected]] = {
    "linear": (
        each_of(0.3, 0.5, merge_method="linear"),
        lambda name, tensors: linear(tensors, (0.3, 0.5)),
    ),
    "linear, not normalized": (
        each_of(0.3, 0.5, merge_method="linear", parameters={"normalize": False}),
        lambda name, tensors: linear(tensors, (0.3, 0.5), normalize=False),
    ),
    "linear, more and less than all": (
        each_of(2.5, -0.5, merge_method="linear"),
        lambda name, tensors: linear(tensors, (2.5, -0.5)),
    ),
    "linear, by layer and by name": (
        each_of(BY_GROUP, 0.7, merge_method="linear"),
        lambda name, tensors: linear(tensors, (by_group(name), 0.7)),
    ),
    "slerp": (
        {**TURNED, "parameters": {"t": 0.3}},
        lambda name, tensors: slerp(tensors, 0.3),
    ),
    "slerp, by layer and by name": (
        {**TURNED, "parameters": {"t": BY_GROUP}},
        lambda name, tensors: slerp(tensors, by_group(name)),
    ),
    "slerp, past the end": (
        {**TURNED, "parameters": {"t": 1.2}},
        lambda name, tensors: slerp(tensors, 1.2),
    ),
    "task_arithmetic": (
        {**SHIFTED, "models": [{"model": "b", "parameters": {"weight": 0.4}}]},
        lambda name, tensors: task_arithmetic(tensors, (0.4,)),
    ),
    "task_arithmetic, by layer and by name": (
        {**SHIFTED, "models": [{"model": "b", "parameters": {"weight": BY_GROUP}}], "parameters": {"lambda": 1.5}},
        lambda name, tensors: task_arithmetic(tensors, (by_group(name),), factor=1.5),
    ),
}


def close(name: str, actual: Weights, expected: Weights, kind: str, tensors: Sequence[Weights]) -> None:
    """Fail unless weights are those expected as they are in a type, but for the rounding of sums before."""
    rows = [np.abs(each).max(axis=-1, keepdims=True) for each in (expected, *tensors)]
    step = STEPS[kind] * np.maximum.reduce(rows)
    wanted = rounded(expected, kind)
    assert (np.abs(actual - wanted) <= step).all(), name
    if kind != "F32":
        assert (actual == wanted).mean() > 0.95, name  # a sum that lies on an edge may fall to either side


KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.most)


@KIND
@pytest.mark.parametrize("case", CASES)
def test_a_merge_is_what_the_formula_says(case: str, kind: Kind, models: Models, tmp_path: Path) -> None:
    recipe, expected = CASES[case]
    sources = {name: models[f"{name} {kind.most}"] for name in "ab"}
    first, second = (source.weights for source in sources.values())
    own = read(merge(recipe, sources, tmp_path / "own.gguf"))
    full = read(merge(recipe, sources, tmp_path / "full.gguf", Target(type="F32")))
    assert own.keys() == full.keys() == first.keys()
    for name, one in first.items():
        tensors = (one, second[name])
        wanted = expected(name, tensors)
        close(name, full[name], wanted, "F32", tensors)
        close(name, own[name], wanted, kind.of(name, wanted.ndim), tensors)


def test_task_vectors_are_added_with_their_weights_divided_by_the_sum_of_them(models: Models, tmp_path: Path) -> None:
    sources = {name: models[f"{name} F16"] for name in "abc"}
    for normalize, shares in ((True, (0.4, 0.9)), (False, (0.4, 0.9)), (True, (0.5, -0.5))):
        rows = each_of(0.0, *shares)["models"][1:]
        recipe = {**SHIFTED, "models": rows, "parameters": {"normalize": normalize, "lambda": 0.7}}
        made = read(merge(recipe, sources, tmp_path / "made.gguf", Target(type="F32")))
        for name in made:
            tensors = [source.weights[name] for source in sources.values()]
            close(name, made[name], task_arithmetic(tensors, shares, normalize, 0.7), "F32", tensors)


@pytest.mark.parametrize("base", "abc")
def test_models_of_several_types_are_averaged_in_those_of_the_base(base: str, models: Models, tmp_path: Path) -> None:
    sources = {"a": models["a Q4_K"], "b": models["b Q8_0"], "c": models["c F16"]}
    shares = (1.0, 2.0, 0.5)
    path = merge(each_of(*shares, merge_method="linear", base_model=base), sources, tmp_path / "made.gguf")
    assert types(path) == types(sources[base].path)
    for name, made in read(path).items():
        tensors = [source.weights[name] for source in sources.values()]
        close(name, made, linear(tensors, shares), types(path)[name], tensors)


@KIND
def test_a_scale_multiplies_the_tensors_of_its_filter(kind: Kind, models: Models, tmp_path: Path) -> None:
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
def test_a_model_added_to_itself_is_the_same_bytes(kind: Kind, models: Models, tmp_path: Path) -> None:
    source = models[f"b {kind.most}"]
    recipes = [each_of(*shares, merge_method="linear") for shares in SHARES]
    for recipe in (*recipes, {**TURNED, "parameters": {"t": 0.37}}):
        made = merge(recipe, {"a": source, "b": source}, tmp_path / "made.gguf")
        assert contents(made) == contents(source.path)


@KIND
def test_a_model_added_to_a_copy_of_itself_is_the_same_within_rounding(
    kind: Kind, models: Models, tmp_path: Path
) -> None:
    source, path = models[f"b {kind.most}"], tmp_path / "copy.gguf"
    path.write_bytes(source.path.read_bytes())  # which a merge cannot know to be the same model
    recipes = [each_of(*shares, merge_method="linear") for shares in SHARES]
    recipes += [{**TURNED, "parameters": {"t": t}} for t in (0.37, 1.5)]
    recipes.append({**SHIFTED, "models": [{"model": "b", "parameters": {"weight": -3.0}}]})
    for recipe in recipes:
        made = merge(recipe, {"a": source, "b": source._replace(path=path)}, tmp_path / "made.gguf")
        for name, values in read(made).items():
            before = source.weights[name]
            step = STEPS[kind.of(name, values.ndim)] * np.abs(before).max(axis=-1, keepdims=True)
            assert (np.abs(values - before) <= step).all(), (recipe, name)


@KIND
@pytest.mark.parametrize(("t", "end"), [(0, "a"), (1, "b"), (0.0, "a"), (1.0, "b")])
def test_an_arc_begins_and_ends_with_the_bytes_of_its_ends(
    t: float, end: str, kind: Kind, models: Models, tmp_path: Path
) -> None:
    sources = {name: models[f"{name} {kind.most}"] for name in "ab"}
    made = merge({**TURNED, "parameters": {"t": t}}, sources, tmp_path / "made.gguf")
    assert contents(made) == contents(sources[end].path)


def test_an_arc_ends_in_the_types_of_its_base(models: Models, tmp_path: Path) -> None:
    sources = {"a": models["a Q8_0"], "b": models["b Q4_K"]}
    path = merge({**TURNED, "parameters": {"t": 1}}, sources, tmp_path / "made.gguf")
    assert types(path) == types(sources["a"].path)
    for name, made in read(path).items():
        end = sources["b"].weights[name]
        close(name, made, end, types(path)[name], [end])


ONLY: list[Any] = [{"filter": "self_attn", "value": 0.5}]
UNEVEN: list[Any] = [{"filter": "mlp", "value": -0.5}, {"value": 0.5}]


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        (each_of(0.5, -0.5, merge_method="linear"), "the weights for token_embd.weight add up to 0"),
        (each_of(0, 0, merge_method="linear"), "the weights for token_embd.weight add up to 0"),
        (each_of(UNEVEN, 0.5, merge_method="linear"), "the weights for blk.0.ffn_gate.weight add up to 0"),
        (each_of(0.5, ONLY, merge_method="linear"), "the recipe has no weight of b for token_embd.weight"),
        (
            {**SHIFTED, "models": [{"model": "b", "parameters": {"weight": ONLY}}]},
            "the recipe has no weight of b for token_embd.weight",
        ),
        ({**TURNED, "parameters": {"t": ONLY}}, "the recipe has no t for token_embd.weight"),
    ],
)
def test_weights_that_are_missing_or_add_up_to_nothing_are_told(
    recipe: dict[str, Any], what: str, models: Models, tmp_path: Path
) -> None:
    with pytest.raises(MergeError) as caught:
        merge(recipe, {name: models[f"{name} F16"] for name in "ab"}, tmp_path / "made.gguf")
    assert caught.value.message == what
    assert not list(tmp_path.iterdir())


def test_weights_that_add_up_to_nothing_are_no_error_where_they_are_not_divided(models: Models, tmp_path: Path) -> None:
    sources = {name: models[f"{name} F16"] for name in "ab"}
    recipe = each_of(0.5, -0.5, merge_method="linear", parameters={"normalize": False})
    for name, made in read(merge(recipe, sources, tmp_path / "made.gguf", Target(type="F32"))).items():
        tensors = [source.weights[name] for source in sources.values()]
        close(name, made, 0.5 * tensors[0] - 0.5 * tensors[1], "F32", tensors)


cosines = st.floats(-0.9995, 0.9995)
ratios = st.floats(0, 1)
norms = st.floats(1e-3, 1e3)


@given(cosine=cosines | st.floats(-1, 1), first=norms, second=norms)
def test_an_arc_goes_from_one_end_to_the_other(cosine: float, first: float, second: float) -> None:
    product = cosine * first * second
    assert slerp_coefficients(0.0, first, second, product) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert slerp_coefficients(1.0, first, second, product) == pytest.approx((0.0, 1.0), abs=1e-12)


@given(t=ratios, cosine=cosines)
def test_an_arc_keeps_the_length_and_its_share_of_the_angle(t: float, cosine: float) -> None:
    one, other = slerp_coefficients(t, 1.0, 1.0, cosine)
    assert one**2 + other**2 + 2 * one * other * cosine == pytest.approx(1.0, abs=1e-9)
    assert one + other * cosine == pytest.approx(math.cos(t * math.acos(cosine)), abs=1e-9)


@given(t=ratios, cosine=cosines | st.floats(-1, 1), first=norms, second=norms)
def test_an_arc_is_the_same_from_its_other_end(t: float, cosine: float, first: float, second: float) -> None:
    product = cosine * first * second
    there, back = slerp_coefficients(t, first, second, product), slerp_coefficients(1 - t, second, first, product)
    assert there == pytest.approx(back[::-1], abs=1e-9)


@given(t=ratios, cosine=st.sampled_from([-1.0, -0.9996, 0.9996, 1.0]), first=norms, second=norms)
def test_ends_in_one_direction_are_joined_by_a_line(t: float, cosine: float, first: float, second: float) -> None:
    assert slerp_coefficients(t, first, second, cosine * first * second) == (1 - t, t)


@given(t=ratios, other=norms)
def test_nothing_is_at_right_angles_to_everything(t: float, other: float) -> None:
    expected = (math.cos(t * math.pi / 2), math.sin(t * math.pi / 2))
    assert slerp_coefficients(t, 0.0, other, 0.0) == pytest.approx(expected, abs=1e-12)
