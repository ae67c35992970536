"""Bytes of a merge's tensors: ordered chunks of several threads, bounded memory, damaged sources."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cases import rows
from numpy.typing import NDArray

from cerebrum_cli.core.errors import MergeError, ModelFileError
from cerebrum_cli.gguf.contents import TENSOR_TYPES, TYPE_NUMBERS, Tensor, Value
from cerebrum_cli.weights import codec, execute as weights_module
from cerebrum_cli.weights.execute import PENDING_PER_THREAD, Floats, TensorEvaluator, execute, require_supported_types
from cerebrum_cli.weights.plan import OutputTensor, Plan, Sum, Term

Bytes = NDArray[np.uint8]


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


def output(tensor: Tensor, *terms: tuple[Tensor, float], kind: str | None = None) -> OutputTensor:
    """A sum of these terms with the name and shape of a tensor; without terms, a copy of it, or all of it in a type."""
    origin: Tensor | Sum = tensor
    if terms or kind:
        origin = Sum(tuple(Term(*term) for term in terms or [(tensor, 1.0)]))
    return OutputTensor(tensor.name, tensor.shape, TYPE_NUMBERS[kind] if kind else tensor.type, origin)


def evaluate(tensor: OutputTensor, threads: int = 2) -> bytes:
    with TensorEvaluator(threads) as weights:
        return b"".join(weights.chunks(tensor))


# Damaged sources.


NO_NUMBERS = rows("weights_that_are_no_numbers")


@pytest.mark.parametrize(("values", "factors", "kind", "problem"), NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_merge_weights_names_the_tensor_with_weights_that_are_no_numbers(
    values: list[float], factors: list[float], kind: str, problem: str, tmp_path: Path
) -> None:
    """One weight of each source is special, and all others are 1."""
    tensors = []
    for value in values:
        weights = np.ones((8, 64), np.float32)
        weights[5, 17] = value
        tensors.append(store(tmp_path / "model", weights.tobytes(), "F32", (64, 8)))
    with pytest.raises(MergeError) as caught:
        evaluate(output(tensors[0], *zip(tensors, factors, strict=True), kind=kind))
    assert caught.value.message == problem


@pytest.mark.parametrize("method", ["copy", "sum"])
def test_merge_weights_reports_a_truncated_source(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "COPY_BYTES", 34 * 100)
    monkeypatch.setattr(weights_module, "CHUNK_WEIGHTS", 3200)
    path = tmp_path / "model"
    tensor = store_normal(path, (64, 2000), 0, "Q8_0")
    other = store_normal(tmp_path / "other", (64, 2000), 1, "Q8_0")
    target = output(tensor) if method == "copy" else output(tensor, (other, 0.5), (tensor, 0.5))
    with TensorEvaluator(2) as weights:
        chunks = weights.chunks(target)
        first = next(chunks)
        with path.open("r+b") as file:
            file.truncate(tensor.size // 2)
        with pytest.raises(ModelFileError) as caught:
            list(chunks)
    assert first
    assert caught.value.message == f"{path}: the file was truncated while being read"
    path.unlink()
    with pytest.raises(ModelFileError, match="model: cannot be read: No such file or directory"):
        evaluate(target)


# Order, threads and memory.


def sample_tensors(path: Path) -> Iterator[OutputTensor]:
    one, other = store_normal(path, (256, 60), 1, "Q4_K"), store_normal(path, (256, 60), 2, "Q6_K")
    row, third = store_normal(path, (301,), 3), store_normal(path, (96, 7, 3), 4, "F16")
    yield output(one)
    yield output(one, kind="Q8_0")
    yield output(one, (one, 0.7), (other, 0.6), (one, -0.1))
    yield output(row, (row, 2.0))
    yield output(third, (third, -1.0), (third, 0.3), kind="F32")


def plan_of(tensors: Iterator[OutputTensor]) -> Plan:
    named = (tensor._replace(name=f"tensor {number}") for number, tensor in enumerate(tensors))
    return Plan({"general.architecture": Value("STRING", "llama")}, tuple(named))


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
        chunks = weights.chunks(output(tensor, (tensor, 0.5)))
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
        ("Q8_1", "Q8_0", "blk.0.w.weight is Q8_1, which cannot be dequantized"),
        ("Q8_0", "IQ2_XXS", "blk.9.w.weight is IQ2_XXS, which cannot be written without an importance matrix"),
        ("IQ2_XXS", "IQ2_XXS", "blk.9.w.weight is IQ2_XXS, which cannot be written without an importance matrix"),
    ],
)
def test_merge_refuses_unsupported_types_before_writing(source: str, target: str, problem: str) -> None:
    first, second = (Tensor("blk.0.w.weight", (256,), TYPE_NUMBERS[kind], Path("a"), 0) for kind in ("F32", source))
    for terms in (((first, 0.5), (second, 0.5)), ((second, 1.0),)):
        made = output(first, *terms, kind=target)._replace(name="blk.9.w.weight")
        with pytest.raises(MergeError) as caught:
            require_supported_types(Plan({}, (made,)))
        assert caught.value.message == problem


@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=lambda kind: kind.name)
def test_merge_weights_copies_types_that_no_codec_reads(kind: Any, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(10 * kind.block_bytes)
    tensor = store(tmp_path / "model", b"before" + data, kind.name, (10 * kind.block_size,))._replace(offset=6)
    copy = output(tensor)
    require_supported_types(Plan({}, (copy,)))
    assert evaluate(copy, threads=1) == data
