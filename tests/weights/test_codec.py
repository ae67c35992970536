"""The codec on the real ggml: it agrees with the `gguf` package, and no call aborts the process."""

import ctypes

import gguf
import numpy as np
import pytest
from cases import rows
from numpy.typing import NDArray

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.llama.bindings import bind
from cerebrum_cli.gguf.contents import TENSOR_TYPES
from cerebrum_cli.weights.codec import MAX_WEIGHTS, dequantize, quantize, readable, writable

Floats = NDArray[np.float32]

NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}
ORACLES = {"F32", "F16", *(each.name for each in gguf.quants._type_traits)}  # types that the package reads
UNREAD = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
UNWRITTEN = UNREAD | {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"}
# Root mean square error for normally distributed weights, in standard deviations: the worst measured, plus a tenth.
ERRORS = rows("quantization_errors")


def normal(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def quantized(values: Floats, name: str) -> bytes:
    return quantize(values, NUMBERS[name])


def dequantized(data: bytes, name: str, shape: tuple[int, ...]) -> Floats:
    out = np.full(shape, np.nan, np.float32)
    dequantize(data, NUMBERS[name], out)
    return out


@pytest.mark.parametrize("name", [name for name in NUMBERS if name in ORACLES])
def test_codec_dequantizes_random_bytes_as_the_gguf_package_does(name: str) -> None:
    kind = TENSOR_TYPES[NUMBERS[name]]
    data = np.random.default_rng(1).integers(0, 256, (512, kind.block_bytes), np.uint8)
    with np.errstate(all="ignore"):  # random scales may be infinite
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    found = dequantized(data.tobytes(), name, expected.shape)
    # Bit-identical if multiply and add are separate instructions, as on x86; other CPUs may fuse them.
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    finite = np.isfinite(expected).all(axis=1)
    assert finite.mean() > 0.9
    largest = np.abs(expected[finite]).max(axis=1, keepdims=True)
    assert (np.abs(found[finite] - expected[finite]) <= 1e-6 * largest).all()


@pytest.mark.parametrize("name", ["F16", "BF16", "F32"])
def test_codec_round_trips_floats_exactly(name: str) -> None:
    data = np.random.default_rng(2).integers(0, 256, (4096, TENSOR_TYPES[NUMBERS[name]].block_bytes), np.uint8)
    finite = data[np.isfinite(dequantized(data.tobytes(), name, (4096,)))]
    weights = dequantized(finite.tobytes(), name, (1, len(finite)))
    assert quantized(weights, name) == finite.tobytes()


@pytest.mark.parametrize("name", ERRORS)
def test_codec_quantization_error_is_bounded_and_sizes_are_ggmls(name: str) -> None:
    row_size = bind("ggml_row_size", ctypes.c_size_t, (ctypes.c_int, ctypes.c_int64))
    for scale in (1, 0.02):
        weights = normal(16, 1024) * np.float32(scale)
        error = np.sqrt(np.square(dequantized(quantized(weights, name), name, weights.shape) - weights).mean()) / scale
        assert error <= ERRORS[name]
    for value in (0, 65504, 1e-45):
        data = quantized(np.full((2, 256), value, np.float32), name)
        assert len(data) == 2 * row_size(NUMBERS[name], 256)
        assert np.isfinite(dequantized(data, name, (2, 256))).all()


def test_codec_reports_supported_types_for_any_number() -> None:
    numbers = [*range(-2, 61), 2**31 - 1, 2**64]
    assert set(filter(readable, numbers)) == {NUMBERS[name] for name in NUMBERS.keys() - UNREAD}
    assert set(filter(writable, numbers)) == {NUMBERS[name] for name in NUMBERS.keys() - UNWRITTEN}
    assert ERRORS.keys() == NUMBERS.keys() - UNWRITTEN


@pytest.mark.parametrize(("name", "size", "weights"), [("Q4_K", 143, 256), ("Q4_K", 144, 255), ("F32", 4, 2)])
def test_codec_refuses_bytes_of_another_size(name: str, size: int, weights: int) -> None:
    with pytest.raises(EngineError, match=f"{size} bytes are not {weights} weights of type {name}") as caught:
        dequantized(bytes(size), name, (weights,))
    assert caught.value.hint


@pytest.mark.parametrize("shape", [(2, 255), (1, 0), (0, 256), (4, 64), (MAX_WEIGHTS // 256 + 1, 256)])
def test_codec_refuses_rows_that_are_not_whole_blocks(shape: tuple[int, int]) -> None:
    with pytest.raises(EngineError, match=f"{shape[0]} rows of {shape[1]} weights") as caught:
        quantized(np.broadcast_to(np.float32(1), shape), "Q6_K")
    assert caught.value.hint


@pytest.mark.parametrize("value", [np.nan, np.inf, -7e4])
@pytest.mark.parametrize("name", sorted(ERRORS.keys() - {"F32", "BF16"}))
def test_codec_refuses_weights_that_are_not_finite(name: str, value: float) -> None:
    values = normal(2, 256)
    values[1, 7] = value
    with pytest.raises(EngineError, match="not finite") as caught:
        quantized(values, name)
    assert caught.value.hint


def test_codec_has_the_types_and_layouts_of_ggml() -> None:
    name = bind("ggml_type_name", ctypes.c_char_p, (ctypes.c_int,))
    block_size = bind("ggml_blck_size", ctypes.c_int64, (ctypes.c_int,))
    block_bytes = bind("ggml_type_size", ctypes.c_size_t, (ctypes.c_int,))
    requires_imatrix = bind("ggml_quantize_requires_imatrix", ctypes.c_bool, (ctypes.c_int,))
    for number, kind in TENSOR_TYPES.items():
        assert (name(number).decode().upper(), block_size(number), block_bytes(number)) == kind
        assert not (writable(number) and requires_imatrix(number))
