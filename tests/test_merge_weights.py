"""The bytes of a merge's tensors: block scales, pieces in order from several threads, bounded memory, bad sources."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from cerebrum_cli.core.errors import MergeError, ModelFileError
from cerebrum_cli.engine.llama.codec import LlamaCodec
from cerebrum_cli.gguf.table import Tensor, Value
from cerebrum_cli.gguf.types import TENSOR_TYPES
from cerebrum_cli.merge import weights as working
from cerebrum_cli.merge.execute import execute, plan_files, require_supported_types
from cerebrum_cli.merge.methods import Copy, Slerp, Sum, TensorOp, Term
from cerebrum_cli.merge.plan import OutputTensor, Plan
from cerebrum_cli.merge.target_types import TYPE_NUMBERS
from cerebrum_cli.merge.weights import PENDING_PER_THREAD, SCALE_OFFSETS, Codec, Floats, TensorEvaluator

CODEC = LlamaCodec()
Bytes = NDArray[np.uint8]


def no_codec() -> Codec:
    """Be asked for a codec where none is needed."""
    raise AssertionError("weights need not be worked out here")


def stored(path: Path, data: bytes, kind: str, shape: tuple[int, ...], name: str = "blk.0.attn_q.weight") -> Tensor:
    """Return a tensor whose bytes are put at the end of a file."""
    with path.open("ab") as file:
        offset = file.tell()
        file.write(data)
    return Tensor(name, shape, TYPE_NUMBERS[kind], path, offset)


def normal(path: Path, shape: tuple[int, ...], seed: int, kind: str = "F32", name: str = "blk.0.w.weight") -> Tensor:
    """Return a tensor of normally distributed weights."""
    values = np.random.default_rng(seed).standard_normal((int(np.prod(shape[1:])), shape[0]), np.float32)
    return stored(path, CODEC.quantize(values, TYPE_NUMBERS[kind]), kind, shape, name)


def output(tensor: Tensor, work: TensorOp, kind: str | None = None) -> OutputTensor:
    return OutputTensor(tensor.name, tensor.shape, TYPE_NUMBERS[kind] if kind else tensor.type, work)


def made(tensor: OutputTensor, threads: int = 2) -> bytes:
    """Return all the bytes of a tensor."""
    with TensorEvaluator(lambda: CODEC, threads) as weights:
        return b"".join(weights.chunks(tensor))


# Block scales.

BLOCKS = 24


def random_blocks(name: str) -> Bytes:
    """Return blocks of noise whose scales are such as files have, normal and subnormal numbers of either sign."""
    random = np.random.default_rng(TYPE_NUMBERS[name])
    blocks = random.integers(0, 256, (BLOCKS, TENSOR_TYPES[TYPE_NUMBERS[name]].block_bytes), np.uint8)
    for place in SCALE_OFFSETS[name]:
        scales = (random.standard_normal(BLOCKS) * 10.0 ** random.integers(-6, 1, BLOCKS)).astype("<f2")
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    return blocks


def scales(blocks: Bytes, place: int) -> NDArray[np.float64]:
    return np.ascontiguousarray(blocks[:, place : place + 2]).view("<f2").astype(np.float64)


def dequantized(blocks: Bytes, name: str) -> NDArray[np.float64]:
    return np.asarray(gguf.dequantize(blocks, gguf.GGMLQuantizationType[name]), np.float64)


def with_scales(blocks: Bytes, name: str, one: int) -> Bytes:
    """Return blocks one of whose scales is 1, and the others 0."""
    blocks = blocks.copy()
    for place in SCALE_OFFSETS[name]:
        blocks[:, place : place + 2] = np.array([place == one], "<f2").view(np.uint8)
    return blocks


@pytest.mark.parametrize("name", SCALE_OFFSETS)
def test_a_scaled_tensor_is_its_weights_times_the_factor(name: str, tmp_path: Path) -> None:
    before = random_blocks(name)
    weights = BLOCKS * TENSOR_TYPES[TYPE_NUMBERS[name]].block_size
    tensor = stored(tmp_path / "model", before.tobytes(), name, (weights,))
    for factor in (0.5, -1.25, 3.0, 0.01, 0.0, -0.0, 1 / 3):
        with TensorEvaluator(no_codec, 1) as opened:
            data = b"".join(opened.chunks(output(tensor, Sum((Term(tensor, factor),)))))
        after = np.frombuffer(data, np.uint8).reshape(before.shape)
        rounding = np.zeros((BLOCKS, 1))
        for place in SCALE_OFFSETS[name]:
            old, new = scales(before, place), scales(after, place)
            assert (np.abs(new - factor * old) <= np.maximum(2.0**-11 * np.abs(factor * old), 2.0**-25)).all()
            units = np.abs(dequantized(with_scales(before, name, place), name)).max(axis=-1, keepdims=True)
            rounding = rounding + units * np.abs(new - factor * old)
        expected = factor * dequantized(before, name)
        error = np.abs(dequantized(after, name) - expected)
        assert (error <= rounding + 1e-6 * np.abs(expected).max(axis=-1, keepdims=True)).all()
        kept = [each for each in range(before.shape[1]) if not {each, each - 1} & {*SCALE_OFFSETS[name]}]
        assert (after[:, kept] == before[:, kept]).all()


@pytest.mark.parametrize("factor", [2.0, -2.0])
@pytest.mark.parametrize(
    ("name", "place"), [(name, place) for name, places in SCALE_OFFSETS.items() for place in places]
)
def test_a_factor_that_a_types_scales_cannot_hold_is_told(name: str, place: int, factor: float, tmp_path: Path) -> None:
    blocks = random_blocks(name)
    blocks[BLOCKS // 2, place : place + 2] = np.array([60_000], "<f2").view(np.uint8)
    tensor = stored(tmp_path / "model", blocks.tobytes(), name, (BLOCKS * TENSOR_TYPES[TYPE_NUMBERS[name]].block_size,))
    with pytest.raises(MergeError) as caught:
        made(output(tensor, Sum((Term(tensor, factor),))))
    assert caught.value.message == f"{tensor.name} times {factor:g} overflows its type"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_tensor_without_scales_is_multiplied_by_the_codec(kind: str, tmp_path: Path) -> None:
    tensor = normal(tmp_path / "model", (64, 10), 0, kind)
    before, after = np.empty((10, 64), np.float32), np.empty((10, 64), np.float32)
    CODEC.dequantize((tmp_path / "model").read_bytes(), tensor.type, before)
    CODEC.dequantize(made(output(tensor, Sum((Term(tensor, -0.75),)))), tensor.type, after)
    np.testing.assert_allclose(after, -0.75 * before, rtol={"F32": 1e-7, "F16": 2**-11, "BF16": 2**-8}[kind])


def test_a_scaled_tensor_in_another_type_is_worked_out(tmp_path: Path) -> None:
    tensor = normal(tmp_path / "model", (64, 10), 0, "Q8_0")
    before = np.empty((10, 64), np.float32)
    CODEC.dequantize((tmp_path / "model").read_bytes(), tensor.type, before)
    after = np.frombuffer(made(output(tensor, Sum((Term(tensor, 0.5),)), "F32")), np.float32)
    assert (after.reshape(10, 64) == before / 2).all()


# Sources that are not sound.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["sum", "arc", "arc from", "scale", "type"])
def test_numbers_that_are_not_finite_are_told_with_the_tensor(bad: float, method: str, tmp_path: Path) -> None:
    values = np.ones((8, 64), np.float32)
    values[5, 17] = bad
    broken = stored(tmp_path / "broken", values.tobytes(), "F32", (64, 8))
    sound = normal(tmp_path / "sound", (64, 8), 0)
    works: dict[str, TensorOp] = {
        "sum": Sum((Term(sound, 0.5), Term(broken, 0.5))),
        "arc": Slerp(0.5, sound, broken),
        "arc from": Slerp(0.5, broken, sound),
        "scale": Sum((Term(broken, 0.5),)),
        "type": Copy(broken),
    }
    target = OutputTensor(
        "blk.7.ffn_up.weight", (64, 8), TYPE_NUMBERS["Q8_0" if method == "type" else "F32"], works[method]
    )
    with pytest.raises(MergeError, match=r"blk\.7\.ffn_up\.weight would have infinite or NaN weights"):
        made(target)


@pytest.mark.parametrize(
    ("values", "factors"),
    [((np.inf, -np.inf), (0.5, 0.5)), ((3e38, 3e38), (1.0, 1.0)), ((3e38,), (10.0,)), ((1.0,), (1e300,))],
)
def test_numbers_that_grow_too_large_are_an_error_and_no_warning(
    values: tuple[float, ...], factors: tuple[float, ...], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    tensors = [stored(path, np.full(64, value, np.float32).tobytes(), "F32", (64,)) for value in values]
    with pytest.raises(MergeError, match="would have infinite or NaN weights"):
        made(output(tensors[0], Sum(tuple(Term(*each) for each in zip(tensors, factors, strict=True)))))


@pytest.mark.parametrize(("scale", "factor"), [(0.0, 1e39), (np.inf, 0.0), (np.nan, 1.5)])
def test_scales_that_become_no_number_are_an_error_and_no_warning(scale: float, factor: float, tmp_path: Path) -> None:
    tensor = stored(tmp_path / "model", np.array([scale], "<f2").tobytes() + bytes(32), "Q8_0", (32,))
    with pytest.raises(MergeError, match="overflows its type"):
        made(output(tensor, Sum((Term(tensor, factor),))))


def test_weights_too_large_for_their_type_are_reported_by_tensor(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "model", np.full(64, 70_000, np.float32).tobytes(), "F32", (64,))
    with pytest.raises(
        MergeError, match=rf"{tensor.name}: cannot write weights that are not finite or exceed 65504 as F16"
    ):
        made(output(tensor, Copy(tensor), "F16"))


def test_numbers_that_are_not_finite_are_copied_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    tensor = stored(tmp_path / "broken", np.full(64, np.nan, np.float32).tobytes(), "F32", (64,))
    assert made(output(tensor, Copy(tensor))) == (tmp_path / "broken").read_bytes()


@pytest.mark.parametrize("method", ["copy", "scale", "sum", "arc"])
def test_a_source_that_shrinks_while_it_is_read_is_told(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "COPY_BYTES", 34 * 100)
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 3200)
    path = tmp_path / "model"
    tensor = normal(path, (64, 2000), 0, "Q8_0")
    other = normal(tmp_path / "other", (64, 2000), 1, "Q8_0")
    works: dict[str, TensorOp] = {
        "copy": Copy(tensor),
        "scale": Sum((Term(tensor, 0.5),)),
        "sum": Sum((Term(other, 0.5), Term(tensor, 0.5))),
        "arc": Slerp(0.5, other, tensor),
    }
    with TensorEvaluator(lambda: CODEC, 2) as weights:
        pieces = weights.chunks(output(tensor, works[method]))
        first = next(pieces)
        with path.open("r+b") as file:
            file.truncate(tensor.size // 2)
        with pytest.raises(ModelFileError) as caught:
            list(pieces)
    assert first
    assert caught.value.message == f"{path}: the file was truncated during the merge"


@pytest.mark.parametrize("method", ["copy", "sum"])
def test_a_source_that_is_gone_is_told(method: str, tmp_path: Path) -> None:
    tensor = normal(tmp_path / "model", (64, 8), 0)
    (tmp_path / "model").unlink()
    with pytest.raises(ModelFileError, match="model: cannot be read: No such file or directory"):
        made(output(tensor, Copy(tensor) if method == "copy" else Sum((Term(tensor, 0.5),))))


# Order, threads and memory.


def several(path: Path) -> Iterator[OutputTensor]:
    """Yield tensors of many pieces, by each way they can be made."""
    one, other = normal(path, (256, 300), 1, "Q4_K"), normal(path, (256, 300), 2, "Q6_K")
    row, third = normal(path, (1001,), 3), normal(path, (96, 7, 3), 4, "F16")
    yield output(one, Copy(one))
    yield output(one, Copy(one), "Q8_0")
    yield output(one, Sum((Term(one, 0.5),)))
    yield output(one, Sum((Term(one, 0.7), Term(other, 0.6), Term(one, -0.1))))
    yield output(other, Slerp(0.3, one, other), "F32")
    yield output(row, Sum((Term(row, 2.0),)))
    yield output(third, Sum((Term(third, -1.0), Term(third, 0.3))), "F32")


def plan_of(tensors: Iterator[OutputTensor]) -> Plan:
    named = (tensor._replace(name=f"tensor {number}") for number, tensor in enumerate(tensors))
    return Plan({"general.architecture": Value("STRING", "llama")}, tuple(named), ())


def test_bytes_are_the_same_whatever_the_threads_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(several(tmp_path / "model"))
    whole = plan_files(plan, tmp_path / "made.gguf")
    [first] = execute(whole, lambda: CODEC, 1, lambda done, total: None)
    data = first.path.read_bytes()
    sizes = [tensor.size for tensor in plan.tensors]
    for tensor, there in zip(plan.tensors, gguf.GGUFReader(first.path).tensors, strict=True):
        assert (there.name, there.data.tobytes()) == (tensor.name, made(tensor))
    assert first.size == len(data) == len(whole[0].header) + sum(-(-size // 32) * 32 for size in sizes)
    for worked, copied in ((1 << 18, 1 << 20), (1, 256), (1000, 5000), (256 * 300, 1 << 14)):
        monkeypatch.setattr(working, "CHUNK_WEIGHTS", worked)
        monkeypatch.setattr(working, "COPY_BYTES", copied)
        for threads in (1, 2, 8):
            [again] = execute(whole, lambda: CODEC, threads, lambda done, total: None)
            assert again == first
            assert again.path.read_bytes() == data


@pytest.mark.parametrize("limit", [None, 200_000])
def test_progress_goes_on_from_file_to_file_up_to_all_bytes(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 5000)
    whole = plan_files(plan_of(several(tmp_path / "model")), tmp_path / "made.gguf", limit)
    told: list[tuple[int, int]] = []
    written = execute(whole, lambda: CODEC, 2, lambda done, total: told.append((done, total)))
    size = sum(each.size for each in written)
    assert (len(written) > 1) == bool(limit)
    assert told == sorted(told)
    assert {total for _, total in told} == {size}
    assert size - 32 < told[-1][0] <= size


def test_a_source_is_opened_once_however_many_threads_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, before = [], os.open

    def slow(path: Any, *args: Any, **more: Any) -> int:
        opened.append(path)
        time.sleep(0.002)
        return before(path, *args, **more)

    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 64)
    tensor = normal(tmp_path / "model", (64, 64), 0)
    monkeypatch.setattr(os, "open", slow)
    made(output(tensor, Sum((Term(tensor, 0.5),))), threads=8)
    assert opened == [tmp_path / "model"]


@pytest.mark.parametrize("limit", [None, 200_000])
def test_where_a_file_cannot_get_its_name_none_is_left(limit: int | None, tmp_path: Path) -> None:
    whole = plan_files(plan_of(several(tmp_path / "model")), tmp_path / "made.gguf", limit)
    whole[0].path.mkdir()
    with pytest.raises(MergeError, match="Is a directory"):
        execute(whole, lambda: CODEC, 1, lambda done, total: None)
    assert {each.name for each in tmp_path.iterdir()} == {whole[0].path.name, "model"}


class Counting:
    """A codec that counts the pieces that were read."""

    def __init__(self) -> None:
        self.read = 0
        self.lock = threading.Lock()

    def readable(self, type: int) -> bool:
        return True

    def writable(self, type: int) -> bool:
        return True

    def dequantize(self, data: bytes, type: int, out: Floats) -> None:
        CODEC.dequantize(data, type, out)
        with self.lock:
            self.read += 1

    def quantize(self, values: Floats, type: int) -> bytes:
        return CODEC.quantize(values, type)

    def settled(self) -> int:
        """Return how many pieces were read when no more come."""
        before = -1
        while before != self.read:
            before = self.read
            time.sleep(0.03)
        return before


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_no_more_than_a_few_pieces_wait_for_who_takes_them(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 64)
    tensor = normal(tmp_path / "model", (64, 400), 0)
    codec = Counting()
    with TensorEvaluator(lambda: codec, threads) as weights:
        pieces = weights.chunks(output(tensor, Sum((Term(tensor, 0.5),))))
        assert codec.settled() == 0
        for taken in range(1, 5):
            next(pieces)
            assert taken <= codec.settled() <= taken + PENDING_PER_THREAD * threads
        assert len(list(pieces)) == 396
    assert codec.read == 400


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_whoever_stops_early_waits_for_few_pieces_only(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 64)
    tensor = normal(tmp_path / "model", (64, 4000), 0)
    codec, before = Counting(), threading.active_count()
    with pytest.raises(KeyboardInterrupt), TensorEvaluator(lambda: codec, threads) as weights:
        next(weights.chunks(output(tensor, Slerp(0.5, tensor, tensor))))
        raise KeyboardInterrupt
    assert codec.read <= 8000 + 2 * (1 + PENDING_PER_THREAD * threads)
    assert threading.active_count() == before


class Held(Counting):
    """A codec that reads one piece, and the others when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def dequantize(self, data: bytes, type: int, out: Floats) -> None:
        assert not self.read or self.go.wait(10)
        super().dequantize(data, type, out)


def test_pieces_that_nobody_takes_any_more_are_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", 64)
    tensor = normal(tmp_path / "model", (64, 400), 0)
    codec = Held()
    with TensorEvaluator(lambda: codec, 1) as weights:
        pieces = weights.chunks(output(tensor, Sum((Term(tensor, 0.5),))))
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        codec.go.set()
        assert codec.settled() <= 2


# Who is asked.


class Unable(Counting):
    """A codec that cannot read one type and cannot write another."""

    def readable(self, type: int) -> bool:
        return type != TYPE_NUMBERS["Q4_K"]

    def writable(self, type: int) -> bool:
        return type != TYPE_NUMBERS["Q6_K"]


@pytest.mark.parametrize(
    ("source", "target", "what"),
    [
        ("Q4_K", "Q8_0", "blk.0.w.weight is Q4_K, which cannot be dequantized"),
        ("Q8_0", "Q6_K", "blk.9.w.weight is Q6_K, which cannot be written without an importance matrix"),
    ],
)
def test_a_type_that_cannot_be_read_or_written_is_told_before_anything_is(
    source: str, target: str, what: str, tmp_path: Path
) -> None:
    first, second = normal(tmp_path / "a", (256,), 0, "F32"), normal(tmp_path / "b", (256,), 0, source)
    works: tuple[TensorOp, ...] = (Sum((Term(first, 0.5), Term(second, 0.5))), Slerp(0.5, first, second), Copy(second))
    for work in works:
        plan = Plan({}, (OutputTensor("blk.9.w.weight", (256,), TYPE_NUMBERS[target], work),), ())
        with pytest.raises(MergeError) as caught:
            require_supported_types(plan, Unable)
        assert caught.value.message == what


def test_who_has_everything_that_is_needed_is_content(tmp_path: Path) -> None:
    require_supported_types(plan_of(several(tmp_path / "model")), LlamaCodec)


def test_a_type_of_llama_cpps_that_it_writes_only_with_a_matrix_is_told(tmp_path: Path) -> None:
    first = Tensor("blk.0.w.weight", (256,), TYPE_NUMBERS["IQ2_XXS"], tmp_path / "a", 0)
    plan = Plan({}, (output(first, Sum((Term(first, 0.5), Term(first._replace(offset=66), 0.5)))),), ())
    with pytest.raises(MergeError, match=r"blk\.0\.w\.weight is IQ2_XXS, which cannot be written without"):
        require_supported_types(plan, LlamaCodec)


@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=lambda kind: kind.name)
def test_what_is_copied_needs_nobody_whatever_its_type(kind: Any, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(10 * kind.block_bytes)
    tensor = stored(tmp_path / "model", b"before" + data, kind.name, (10 * kind.block_size,))._replace(offset=6)
    copy = output(tensor, Copy(tensor))
    require_supported_types(Plan({}, (copy,), ()), no_codec)
    with TensorEvaluator(no_codec, 1) as weights:
        assert b"".join(weights.chunks(copy)) == data


def test_what_only_has_its_scales_multiplied_needs_nobody(tmp_path: Path) -> None:
    for name in SCALE_OFFSETS:
        tensor = Tensor("blk.0.w.weight", (256,), TYPE_NUMBERS[name], tmp_path / "model", 0)
        require_supported_types(Plan({}, (output(tensor, Sum((Term(tensor, 0.5),))),), ()), no_codec)
    tensor = Tensor("blk.0.w.weight", (256,), TYPE_NUMBERS["F16"], tmp_path / "model", 0)
    with pytest.raises(AssertionError, match="need not be worked out"):
        require_supported_types(Plan({}, (output(tensor, Sum((Term(tensor, 0.5),))),), ()), no_codec)


# Experts.


def arc(t: float, first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the point of an arc between two arrays, worked out in twice the precision."""
    one, other = first.ravel(), second.ravel()
    cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = np.arccos(cosine)
    shares = float(np.sin(angle * (1 - t)) / np.sin(angle)), float(np.sin(angle * t) / np.sin(angle))
    return shares[0] * first + shares[1] * second


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("worked", [1 << 18, 640])
def test_each_expert_goes_along_an_arc_of_its_own(
    kind: str, worked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "CHUNK_WEIGHTS", worked)
    width, rows, t = 64, 24, 0.3
    random = np.random.default_rng(0)
    first = random.standard_normal((4, rows, width)).astype(np.float32)
    shares = np.array([0.0, 0.5, 0.9, 1.0], np.float32)[:, None, None]  # from arcs that are wide to the straight way
    second = (shares * first + (1 - shares) * random.standard_normal(first.shape) * 3).astype(np.float32)
    values = [first, second]
    tensors = []
    for number, each in enumerate(values):
        data = CODEC.quantize(each.reshape(-1, width), TYPE_NUMBERS[kind])
        tensors.append(stored(tmp_path / f"model{number}", b"before" + data, kind, (width, rows, 4)))
        tensors[-1] = tensors[-1]._replace(offset=6)
        read = np.empty((4 * rows, width), np.float32)
        CODEC.dequantize(data, TYPE_NUMBERS[kind], read)
        values[number] = read.reshape(first.shape)
    found = np.frombuffer(made(output(tensors[0], Slerp(t, *tensors), "F32")), np.float32).reshape(first.shape)
    one, other = (each.astype(np.float64) for each in values)
    expected = np.stack([arc(t, *ends) for ends in zip(one, other, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found - arc(t, one, other)).max() > 0.01  # as it would be with one arc for all of them
