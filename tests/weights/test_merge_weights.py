"""Bytes of a merge's tensors: block scales, ordered chunks of several threads, bounded memory, damaged sources."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from merges import slerp
from numpy.typing import NDArray

from cerebrum_cli.core.errors import MergeError, ModelFileError
from cerebrum_cli.gguf.contents import TENSOR_TYPES, TYPE_NUMBERS, Tensor, Value
from cerebrum_cli.weights import codec, execute as weights_module
from cerebrum_cli.weights.execute import (
    PENDING_PER_THREAD,
    SCALE_OFFSETS,
    Floats,
    TensorEvaluator,
    execute,
    require_supported_types,
)
from cerebrum_cli.weights.methods import Slerp, Sum, TensorOp, Term, copy_of
from cerebrum_cli.weights.plan import OutputTensor, Plan

Bytes = NDArray[np.uint8]


@pytest.fixture
def no_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are converted."""

    def fail(*_: object) -> None:
        raise AssertionError("a codec is not needed here")

    for name in ("readable", "writable", "dequantize", "quantize"):
        monkeypatch.setattr(codec, name, fail)


def store(path: Path, data: bytes, kind: str, shape: tuple[int, ...], name: str = "blk.0.attn_q.weight") -> Tensor:
    with path.open("ab") as file:
        offset = file.tell()
        file.write(data)
    return Tensor(name, shape, TYPE_NUMBERS[kind], path, offset)


def store_normal(
    path: Path, shape: tuple[int, ...], seed: int, kind: str = "F32", name: str = "blk.0.w.weight"
) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((int(np.prod(shape[1:])), shape[0]), np.float32)
    return store(path, codec.quantize(values, TYPE_NUMBERS[kind]), kind, shape, name)


def output(tensor: Tensor, op: TensorOp, kind: str | None = None) -> OutputTensor:
    return OutputTensor(tensor.name, tensor.shape, TYPE_NUMBERS[kind] if kind else tensor.type, op)


def evaluate(tensor: OutputTensor, threads: int = 2) -> bytes:
    with TensorEvaluator(threads) as weights:
        return b"".join(weights.chunks(tensor))


# Block scales.

BLOCKS = 24


def random_blocks(name: str) -> Bytes:
    random = np.random.default_rng(TYPE_NUMBERS[name])
    blocks = random.integers(0, 256, (BLOCKS, TENSOR_TYPES[TYPE_NUMBERS[name]].block_bytes), np.uint8)
    for offset in SCALE_OFFSETS[name]:
        scales = (random.standard_normal(BLOCKS) * 10.0 ** random.integers(-6, 1, BLOCKS)).astype("<f2")
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    return blocks


def scales(blocks: Bytes, offset: int) -> NDArray[np.float64]:
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").astype(np.float64)


def dequantized(blocks: Bytes, name: str) -> NDArray[np.float64]:
    return np.asarray(gguf.dequantize(blocks, gguf.GGMLQuantizationType[name]), np.float64)


def with_scales(blocks: Bytes, name: str, one: int) -> Bytes:
    blocks = blocks.copy()
    for offset in SCALE_OFFSETS[name]:
        blocks[:, offset : offset + 2] = np.array([offset == one], "<f2").view(np.uint8)
    return blocks


@pytest.mark.usefixtures("no_codec")
@pytest.mark.parametrize("name", SCALE_OFFSETS)
def test_merge_weights_scales_quantized_blocks(name: str, tmp_path: Path) -> None:
    before = random_blocks(name)
    weights = BLOCKS * TENSOR_TYPES[TYPE_NUMBERS[name]].block_size
    tensor = store(tmp_path / "model", before.tobytes(), name, (weights,))
    for factor in (0.5, -1.25, 3.0, 0.01, 0.0, -0.0, 1 / 3):
        with TensorEvaluator(1) as opened:
            data = b"".join(opened.chunks(output(tensor, Sum((Term(tensor, factor),)))))
        after = np.frombuffer(data, np.uint8).reshape(before.shape)
        rounding = np.zeros((BLOCKS, 1))
        for offset in SCALE_OFFSETS[name]:
            old, new = scales(before, offset), scales(after, offset)
            assert (np.abs(new - factor * old) <= np.maximum(2.0**-11 * np.abs(factor * old), 2.0**-25)).all()
            units = np.abs(dequantized(with_scales(before, name, offset), name)).max(axis=-1, keepdims=True)
            rounding = rounding + units * np.abs(new - factor * old)
        expected = factor * dequantized(before, name)
        error = np.abs(dequantized(after, name) - expected)
        assert (error <= rounding + 1e-6 * np.abs(expected).max(axis=-1, keepdims=True)).all()
        unchanged = [each for each in range(before.shape[1]) if not {each, each - 1} & {*SCALE_OFFSETS[name]}]
        assert (after[:, unchanged] == before[:, unchanged]).all()


# Damaged sources.


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("method", ["sum", "slerp", "slerp from", "scale", "type"])
def test_merge_weights_reports_the_tensor_with_infinite_weights(bad: float, method: str, tmp_path: Path) -> None:
    values = np.ones((8, 64), np.float32)
    values[5, 17] = bad
    broken = store(tmp_path / "broken", values.tobytes(), "F32", (64, 8))
    sound = store_normal(tmp_path / "sound", (64, 8), 0)
    operations: dict[str, TensorOp] = {
        "sum": Sum((Term(sound, 0.5), Term(broken, 0.5))),
        "slerp": Slerp(0.5, sound, broken),
        "slerp from": Slerp(0.5, broken, sound),
        "scale": Sum((Term(broken, 0.5),)),
        "type": copy_of(broken),
    }
    kind = TYPE_NUMBERS["Q8_0" if method == "type" else "F32"]
    target = OutputTensor("blk.7.ffn_up.weight", (64, 8), kind, operations[method])
    with pytest.raises(MergeError, match=r"blk\.7\.ffn_up\.weight would have infinite or NaN weights"):
        evaluate(target)
    assert evaluate(output(broken, copy_of(broken))) == values.tobytes()


@pytest.mark.parametrize(
    ("kind", "values", "factors"),
    [
        ("F32", (np.inf, -np.inf), (0.5, 0.5)),
        ("F32", (3e38, 3e38), (1.0, 1.0)),
        ("F32", (3e38,), (10.0,)),
        ("F32", (1.0,), (1e300,)),
        ("Q8_0", (0.0,), (1e39,)),  # the value is the scale of a block
        ("Q8_0", (np.inf,), (0.0,)),
        ("Q8_0", (np.nan,), (1.5,)),
    ],
)
def test_merge_weights_overflow_raises_without_warnings(
    kind: str, values: tuple[float, ...], factors: tuple[float, ...], tmp_path: Path
) -> None:
    problem = "would have infinite or NaN weights" if kind == "F32" else "overflows its type"
    blocks = [np.full(32, each, np.float32) if kind == "F32" else np.array([each, *[0] * 16], "<f2") for each in values]
    tensors = [store(tmp_path / "model", each.tobytes(), kind, (32,)) for each in blocks]
    with pytest.raises(MergeError, match=problem):
        evaluate(output(tensors[0], Sum(tuple(Term(*each) for each in zip(tensors, factors, strict=True)))))


def test_merge_weights_reports_the_tensor_too_large_for_its_type(tmp_path: Path) -> None:
    tensor = store(tmp_path / "model", np.full(64, 70_000, np.float32).tobytes(), "F32", (64,))
    problem = rf"{tensor.name}: cannot write weights that are not finite or exceed 65504 as F16"
    with pytest.raises(MergeError, match=problem):
        evaluate(output(tensor, copy_of(tensor), "F16"))


@pytest.mark.parametrize("method", ["copy", "scale", "sum", "slerp"])
def test_merge_weights_reports_a_truncated_source(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "COPY_BYTES", 34 * 100)
    monkeypatch.setattr(weights_module, "CHUNK_WEIGHTS", 3200)
    path = tmp_path / "model"
    tensor = store_normal(path, (64, 2000), 0, "Q8_0")
    other = store_normal(tmp_path / "other", (64, 2000), 1, "Q8_0")
    operations: dict[str, TensorOp] = {
        "copy": copy_of(tensor),
        "scale": Sum((Term(tensor, 0.5),)),
        "sum": Sum((Term(other, 0.5), Term(tensor, 0.5))),
        "slerp": Slerp(0.5, other, tensor),
    }
    with TensorEvaluator(2) as weights:
        chunks = weights.chunks(output(tensor, operations[method]))
        first = next(chunks)
        with path.open("r+b") as file:
            file.truncate(tensor.size // 2)
        with pytest.raises(ModelFileError) as caught:
            list(chunks)
    assert first
    assert caught.value.message == f"{path}: the file was truncated while being read"
    path.unlink()
    with pytest.raises(ModelFileError, match="model: cannot be read: No such file or directory"):
        evaluate(output(tensor, operations[method]))


# Order, threads and memory.


def sample_tensors(path: Path) -> Iterator[OutputTensor]:
    one, other = store_normal(path, (256, 60), 1, "Q4_K"), store_normal(path, (256, 60), 2, "Q6_K")
    row, third = store_normal(path, (301,), 3), store_normal(path, (96, 7, 3), 4, "F16")
    yield output(one, copy_of(one))
    yield output(one, copy_of(one), "Q8_0")
    yield output(one, Sum((Term(one, 0.5),)))
    yield output(one, Sum((Term(one, 0.7), Term(other, 0.6), Term(one, -0.1))))
    yield output(other, Slerp(0.3, one, other), "F32")
    yield output(row, Sum((Term(row, 2.0),)))
    yield output(third, Sum((Term(third, -1.0), Term(third, 0.3))), "F32")


def plan_of(tensors: Iterator[OutputTensor]) -> Plan:
    named = (tensor._replace(name=f"tensor {number}") for number, tensor in enumerate(tensors))
    return Plan({"general.architecture": Value("STRING", "llama")}, tuple(named), ())


@pytest.mark.slow
def test_merge_weights_do_not_depend_on_threads_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(sample_tensors(tmp_path / "model"))
    path = tmp_path / "made.gguf"
    reports: list[tuple[int, int]] = []
    first = execute(plan, path, 1, lambda done, total: reports.append((done, total)))
    assert reports == sorted(reports)
    assert {total for _, total in reports} == {reports[-1][0]} == {plan.size}
    data = path.read_bytes()
    sizes = [tensor.size for tensor in plan.tensors]
    for tensor, there in zip(plan.tensors, gguf.GGUFReader(path).tensors, strict=True):
        assert (there.name, there.data.tobytes()) == (tensor.name, evaluate(tensor))
    assert plan.size == len(data) == len(plan.header) + sum(-(-size // 32) * 32 for size in sizes)
    for chunk_size, copied in ((1 << 18, 1 << 20), (1, 256), (1000, 5000), (256 * 60, 1 << 14)):
        monkeypatch.setattr(weights_module, "CHUNK_WEIGHTS", chunk_size)
        monkeypatch.setattr(weights_module, "COPY_BYTES", copied)
        for threads in (1, 2, 8):
            assert execute(plan, path, threads, lambda done, total: None) == first
            assert path.read_bytes() == data


def test_merge_failed_rename_leaves_no_file(tmp_path: Path) -> None:
    plan, path = plan_of(sample_tensors(tmp_path / "model")), tmp_path / "made.gguf"
    path.mkdir()
    with pytest.raises(MergeError, match="Is a directory"):
        execute(plan, path, 1, lambda done, total: None)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "model"}


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_merge_weights_limits_pending_chunks(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "CHUNK_WEIGHTS", 64)
    tensor = store_normal(tmp_path / "model", (64, 400), 0)
    dequantize, lock, read = codec.dequantize, threading.Lock(), 0

    def count(data: bytes, type: int, out: Floats) -> None:
        nonlocal read
        dequantize(data, type, out)
        with lock:
            read += 1

    monkeypatch.setattr(codec, "dequantize", count)
    with TensorEvaluator(threads) as weights:
        chunks = weights.chunks(output(tensor, Sum((Term(tensor, 0.5),))))
        assert read == 0
        for taken in range(1, 5):
            next(chunks)
            assert taken <= read <= taken + PENDING_PER_THREAD * threads
        assert len(list(chunks)) == 396
    assert read == 400


# Supported types.


@pytest.mark.parametrize(
    ("source", "target", "problem"),
    [
        ("Q4_K", "Q8_0", "blk.0.w.weight is Q4_K, which cannot be dequantized"),
        ("Q8_0", "Q6_K", "blk.9.w.weight is Q6_K, which cannot be written without an importance matrix"),
    ],
)
def test_merge_refuses_unsupported_types_before_writing(
    source: str, target: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = store_normal(tmp_path / "a", (256,), 0, "F32"), store_normal(tmp_path / "b", (256,), 0, source)
    for op in (Sum((Term(first, 0.5), Term(second, 0.5))), Slerp(0.5, first, second), copy_of(second)):
        plan = Plan({}, (OutputTensor("blk.9.w.weight", (256,), TYPE_NUMBERS[target], op),), ())
        with monkeypatch.context() as limited, pytest.raises(MergeError) as caught:
            limited.setattr(codec, "readable", lambda type: type != TYPE_NUMBERS["Q4_K"])
            limited.setattr(codec, "writable", lambda type: type != TYPE_NUMBERS["Q6_K"])
            require_supported_types(plan)
        assert caught.value.message == problem
    tensor = Tensor("blk.0.w.weight", (256,), TYPE_NUMBERS["IQ2_XXS"], tmp_path / "a", 0)
    mixed = Sum((Term(tensor, 0.5), Term(tensor._replace(offset=66), 0.5)))
    with pytest.raises(MergeError, match=r"blk\.0\.w\.weight is IQ2_XXS, which cannot be written without"):
        require_supported_types(Plan({}, (output(tensor, mixed),), ()))


@pytest.mark.usefixtures("no_codec")
@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=lambda kind: kind.name)
def test_merge_weights_copies_any_type_without_a_codec(kind: Any, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(10 * kind.block_bytes)
    tensor = store(tmp_path / "model", b"before" + data, kind.name, (10 * kind.block_size,))._replace(offset=6)
    copy = output(tensor, copy_of(tensor))
    require_supported_types(Plan({}, (copy,), ()))
    with TensorEvaluator(1) as weights:
        assert b"".join(weights.chunks(copy)) == data
    scaled = Plan({}, (output(tensor, Sum((Term(tensor, 0.5),))),), ())
    if kind.name in SCALE_OFFSETS:
        require_supported_types(scaled)
    else:
        with pytest.raises(AssertionError, match="is not needed here"):
            require_supported_types(scaled)


# Experts.


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("chunk_size", [1 << 18, 640])
def test_merge_weights_slerp_interpolates_each_expert_separately(
    kind: str, chunk_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "CHUNK_WEIGHTS", chunk_size)
    width, rows, t = 64, 24, 0.3
    random = np.random.default_rng(0)
    first = random.standard_normal((4, rows, width)).astype(np.float32)
    shares = np.array([0.0, 0.5, 0.9, 1.0], np.float32)[:, None, None]  # from wide angles to parallel vectors
    second = (shares * first + (1 - shares) * random.standard_normal(first.shape) * 3).astype(np.float32)
    values = [first, second]
    tensors = []
    for number, each in enumerate(values):
        data = codec.quantize(each.reshape(-1, width), TYPE_NUMBERS[kind])
        path, shape = tmp_path / f"model{number}", (width, rows, 4)
        tensors.append(store(path, b"before" + data, kind, shape, "blk.0.ffn_up_exps.weight")._replace(offset=6))
        read = np.empty((4 * rows, width), np.float32)
        codec.dequantize(data, TYPE_NUMBERS[kind], read)
        values[number] = read.reshape(first.shape)
    made = evaluate(output(tensors[0], Slerp(t, tensors[0], tensors[1]), "F32"))
    found = np.frombuffer(made, np.float32).reshape(first.shape)
    one, other = (each.astype(np.float64) for each in values)
    expected = np.stack([slerp(ends, t) for ends in zip(one, other, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found - slerp((one, other), t)).max() > 0.01  # one arc for all experts gives other weights
