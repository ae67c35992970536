"""Which quantization is recommended: bytes against bytes, for machines from 8 GiB to those with a large GPU."""

from pathlib import Path

import pytest

from cerebrum_cli.engine.capacity import SYSTEM_RESERVE, Capacity
from cerebrum_cli.engine.machine import Speed
from cerebrum_cli.engine.memory import HEADROOM, Device
from cerebrum_cli.engine.requests import DEFAULT_CONTEXT
from cerebrum_cli.gguf.sizes import ModelSizes, uniform_sizes
from cerebrum_cli.library.catalogue_file import load_catalogue
from cerebrum_cli.library.fit import MemoryFit, QuantizationFit, assess_quantizations, fit_memory

GIB, GB = 2**30, 10**9
KV = uniform_sizes(32, 32, 65_536)  # of Mistral-7B: 131,072 bytes per token
UNQUANTIZED = ("F16", "BF16", "F32", "FP16", "FP32")
CATALOGUE = {spec.name: spec for spec in load_catalogue([Path(__file__).parents[2] / "models.toml"])}


def gpu(free: float) -> Device:
    return Device("GPU", "a graphics card", int(free), int(free))


def machine(memory: float, *devices: float) -> Capacity:
    return Capacity(int(memory), tuple(map(gpu, devices)) or None)


def metal(memory: float, free: float) -> Capacity:
    """A machine whose GPU uses the memory of the host."""
    return Capacity(int(memory), (Device("MTL0", "Apple M2", int(free), int(free), is_unified=True),))


def chosen(candidates: tuple[QuantizationFit, ...]) -> str:
    (only,) = (each for each in candidates if each.recommended)
    return only.quantization


def of_sizes(here: Capacity, **gigabytes: float) -> tuple[QuantizationFit, ...]:
    return assess_quantizations(
        [(name, int(size * GB)) for name, size in gigabytes.items()], (), KV, DEFAULT_CONTEXT, here
    )


def fit(size: float, here: Capacity, sizes: ModelSizes = KV) -> MemoryFit:
    return fit_memory(sizes.with_weights(int(size)), DEFAULT_CONTEXT, here)


@pytest.mark.parametrize(
    ("here", "size", "expected"),
    [
        (machine(SYSTEM_RESERVE + 10 * GB), 8.75 * GB - HEADROOM, "fits"),
        (machine(SYSTEM_RESERVE + 10 * GB), 8.75 * GB - HEADROOM + 1, "tight"),
        (machine(SYSTEM_RESERVE + 10 * GB), 10 * GB - HEADROOM, "tight"),
        (machine(SYSTEM_RESERVE + 10 * GB), 10 * GB - HEADROOM + 1, "too big"),
        (machine(SYSTEM_RESERVE + 2 * GB, 10 * GB), 10 * GB - HEADROOM, "fits"),
        (machine(SYSTEM_RESERVE + 2 * GB, 10 * GB), 12 * GB, "too big"),
        (machine(SYSTEM_RESERVE + 10 * GB, 5 * GB, 5 * GB), 15 * GB, "fits"),
        (machine(SYSTEM_RESERVE + 10 * GB, 5 * GB, 5 * GB), 17 * GB, "tight"),
        (machine(SYSTEM_RESERVE // 2), 1, "too big"),
        (Capacity(SYSTEM_RESERVE + 10 * GB, ()), 8 * GB, "fits"),
        (metal(16 * GIB, 12 * GIB), 12 * GB, "fits"),
        (metal(16 * GIB, 12 * GIB), 15 * GB, "tight"),
        (metal(16 * GIB, 12 * GIB), 20.4 * GB, "too big"),
    ],
)
def test_fit_changes_at_its_limits(here: Capacity, size: float, expected: str) -> None:
    without_kv = uniform_sizes(32, 32, 0)  # half a GiB is left free beside the weights
    assert fit(size, here, without_kv).fit == expected
    unusable = machine(SYSTEM_RESERVE // 2), machine(SYSTEM_RESERVE // 2, 10 * GB), metal(16 * GIB, 12 * GIB)
    assert [each.usable_memory for each in unusable] == [0, 10 * GB - HEADROOM, 15 * GIB]


@pytest.mark.parametrize(
    ("name", "here", "quantization", "expected"),
    [
        ("cerebrum-7b", machine(4 * GIB), "Q2_K", "too big"),
        ("cerebrum-7b", machine(11 * GIB // 2), "Q2_K", "tight"),
        ("cerebrum-7b", machine(6 * GIB), "Q2_K", "fits"),
        ("cerebrum-7b", machine(15 * GIB // 2), "Q4_K_M", "fits"),  # what is told of 8 GB
        ("cerebrum-7b", machine(32 * GIB), "Q6_K", "fits"),
        ("cerebrum-7b", machine(8 * GIB, 12 * GB), "Q8_0", "fits"),
        ("cerebrum-7b", machine(16 * GIB, 8 * GB), "Q6_K", "fits"),
        ("cerebrum-7b", machine(16 * GIB, 6 * GB, 6 * GB), "Q8_0", "fits"),
        ("cerebrum-8x7b", machine(16 * GIB), "Q2_K", "too big"),
        ("cerebrum-8x7b", machine(64 * GIB), "Q4_K_M", "fits"),
        ("cerebrum-8x7b", machine(64 * GIB, 48 * GB), "Q6_K", "fits"),
    ],
)
def test_fit_recommends_by_memory(name: str, here: Capacity, quantization: str, expected: str) -> None:
    candidates = assess_quantizations(CATALOGUE[name].quantizations.items(), (), KV, DEFAULT_CONTEXT, here)
    assert [(each.quantization, each.fit) for each in candidates if each.recommended] == [(quantization, expected)]


@pytest.mark.parametrize(
    ("here", "sizes", "quantization"),
    [
        (machine(16 * GIB), {"Q4_KS": 4.14, "Q6_K": 5.94, "Q8_0": 7.7}, "Q4_KS"),
        (machine(64 * GIB), {"Q4_KS": 4.14, "Q6_K": 5.94, "Q8_0": 7.7}, "Q8_0"),  # comfortable
        (Capacity(64 * GIB, speed=Speed(28e9, 120e9)), {"Q4_KS": 4.14, "Q6_K": 5.94, "Q8_0": 7.7}, "Q4_KS"),  # slow
        (Capacity(64 * GIB, speed=Speed(36e9, 150e9)), {"Q4_KS": 4.14, "Q6_K": 5.94, "Q8_0": 7.7}, "Q6_K"),
        (machine(16 * GIB), {"Q2_K": 2.7, "IQ4_XS": 3.9, "Q4_0": 4.1, "Q8_0": 11.3}, "Q4_0"),
        (machine(16 * GIB), {"Q3_K_M": 3.5, "Q5_K_M": 5.1, "Q8_0": 7.7}, "Q3_K_M"),  # more must be comfortable
        (machine(16 * GIB), {"Q2_K": 4.0, "Q8_0": 11.3}, "Q2_K"),
        (machine(8 * GIB), {"Q2_K": 2.7, "Q8_0": 7.7}, "Q2_K"),
        (machine(16 * GIB), {"Q5_K_M": 5.1, "Q8_0": 7.7}, "Q5_K_M"),
        (machine(16 * GIB), {"IQ1_S": 1.7, "Q5_K_M": 5.1}, "Q5_K_M"),
        (machine(16 * GIB), {"other": 3.0, "Q8_0": 7.7}, "Q8_0"),
        # the smallest if all are tight, or none fits
        (machine(SYSTEM_RESERVE + 6 * GB), {"Q4_K_M": 4.37, "Q4_K_S": 4.14, "Q3_K_L": 3.82}, "Q3_K_L"),
        (machine(SYSTEM_RESERVE + 6 * GB), {"Q8_0": 7.7, "Q4_K_M": 5.9}, "Q4_K_M"),
        # unquantized files last
        *((machine(2048 * GIB), {name: 14.5, "Q8_0": 7.7}, "Q8_0") for name in UNQUANTIZED),
        *((machine(2048 * GIB), {name: 14.5}, name) for name in UNQUANTIZED),
    ],
)
def test_fit_without_the_preferred_recommends_the_nearest(
    here: Capacity, sizes: dict[str, float], quantization: str
) -> None:
    assert chosen(of_sizes(here, **sizes)) == quantization


def test_fit_marks_installed_quantizations_in_any_case() -> None:
    sizes = [("Q4_K_M", 4 * GB), ("Q8_0", 8 * GB), ("UD-Q4_K_XL", 5 * GB), ("model", GB)]
    installed, here = ["q4_k_m", "UD-q4_K_xl", "MODEL", "Q6_K", ""], machine(16 * GIB)
    candidates = assess_quantizations(sizes, installed, KV, DEFAULT_CONTEXT, here)
    states = [("model", True), ("Q4_K_M", True), ("UD-Q4_K_XL", True), ("Q8_0", False)]  # by size
    assert [(each.quantization, each.installed) for each in candidates] == states
    assert all(each.needed == fit(each.size, here).needed for each in candidates)
    assert assess_quantizations([], ["Q4_K_M"], KV, DEFAULT_CONTEXT, here) == ()
