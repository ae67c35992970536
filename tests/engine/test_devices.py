"""GPUs from recorded lists of llama.cpp's devices: which are used, and whose memory is that of the host."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_models import Shape, write_quantized

from cerebrum_cli.engine.llama import bindings
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.load import load_model
from cerebrum_cli.engine.machine import Memory
from cerebrum_cli.engine.memory import Device, LoadPlan
from cerebrum_cli.engine.memory_plan import plan_layers
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.header import read_header, read_tables
from cerebrum_cli.gguf.sizes import LayerSizes, ModelSizes

MIB = 1 << 20
GIB = 1 << 30
CPU, GPU, INTEGRATED, ACCELERATOR = range(4)  # ggml_backend_dev_type
HOST = 24 * GIB  # available


class Listed(NamedTuple):
    """A device as llama.cpp lists it, in MiB."""

    name: str
    description: str
    type: int
    total: int
    free: int


PROCESSOR = Listed("CPU", "a processor", CPU, 32_000, 24_000)
DISCRETE = Listed("Vulkan0", "AMD Radeon AI PRO R9700", GPU, 32_624, 32_000)
APPLE = (  # llama-bench --list-devices, before and since Metal devices have numbers
    Listed("Metal", "Apple M4 Max", GPU, 98_304, 98_303),
    Listed("BLAS", "Accelerate", ACCELERATOR, 0, 0),
)
APPLE_NUMBERED = (Listed("MTL0", "Apple M2 Ultra", GPU, 165_150, 158_091),)
SPARK = (Listed("CUDA0", "NVIDIA GB10", INTEGRATED, 122_570, 118_000),)
RYZEN = (Listed("Vulkan0", "AMD Radeon 8060S Graphics", INTEGRATED, 65_536, 62_259),)
UNIFIED_CUDA = (Listed("CUDA0", "NVIDIA GeForce RTX 5090", GPU, 32_106, 55_372),)  # free: memory of the host
TWO_KINDS = (DISCRETE, Listed("Vulkan1", "AMD Radeon 680M", INTEGRATED, 12_000, 11_000))


def find(monkeypatch: pytest.MonkeyPatch, *listed: Listed) -> tuple[Device, ...]:
    """Find the GPUs of a list, on a host with HOST bytes available."""

    def write_memory(handle: int, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = listed[handle].free * MIB, listed[handle].total * MIB

    listed = (*listed, PROCESSOR)
    functions: dict[str, Any] = {
        "ggml_backend_dev_count": lambda: len(listed),
        "ggml_backend_dev_get": lambda index: index,
        "ggml_backend_dev_type": lambda handle: listed[handle].type,
        "ggml_backend_dev_memory": write_memory,
        "ggml_backend_dev_name": lambda handle: listed[handle].name.encode(),
        "ggml_backend_dev_description": lambda handle: listed[handle].description.encode(),
    }
    monkeypatch.setattr(bindings, "bind", lambda symbol, result, arguments: functions[symbol])
    monkeypatch.setattr(llama, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(bindings, "memory", lambda: Memory(HOST, HOST))
    free = bindings.free_memory()
    assert free.host == HOST
    return free.devices


@pytest.mark.parametrize(
    ("listed", "names", "is_unified"),
    [
        *((APPLE, ["Metal"], True), (APPLE_NUMBERED, ["MTL0"], True), (SPARK, ["CUDA0"], True)),
        *((RYZEN, ["Vulkan0"], True), (UNIFIED_CUDA, ["CUDA0"], True), ((DISCRETE,), ["Vulkan0"], False)),
        ((), [], False),
        (TWO_KINDS, ["Vulkan0"], False),  # integrated GPUs only without others
    ],
)
def test_memory_of_the_host_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, listed: tuple[Listed, ...], names: list[str], is_unified: bool
) -> None:
    gpus = find(monkeypatch, *listed)
    assert [(gpu.name, gpu.is_unified) for gpu in gpus] == [(name, is_unified) for name in names]
    for gpu, device in zip(gpus, listed, strict=False):
        assert (gpu.description, gpu.free, gpu.total) == (device.description, device.free * MIB, device.total * MIB)
    context = ContextOptions(4096, 1, 1, 512)
    for weights, fits_memory in ((GIB, True), (3 * GIB // 2, not is_unified)):  # 18 GB or 26 GB in all, of 24 GB
        sizes = ModelSizes((LayerSizes(weights, 1024, 1024),) * 16, input_bytes=GIB, output_bytes=GIB)
        offloaded = plan_layers(sizes, "auto", context, gpus)
        assert offloaded == ((17,) if gpus else ()), "the device alone would hold it"
        assert not gpus or LoadPlan(sizes, context, offloaded).needs.fits(bindings.free_memory()) is fits_memory


@pytest.mark.slow
def test_experts_of_the_first_layers_are_kept_on_the_host(tmp_path: Path) -> None:
    path = write_quantized(tmp_path / "mixtral.gguf", experts=4, shape=Shape(layers=12, width=256, ffn=256))
    tensors = [tensor.name for tensor in read_tables(path).tensors]
    first, end = bindings.expert_overrides(11)
    kept = [name for name in tensors if re.search(first.pattern.decode(), name)]
    assert kept == [name for name in tensors if "_exps" in name and not name.startswith("blk.11.")]
    assert first.buffer_type and not end.pattern and not end.buffer_type
    options = LoadOptions(path, 512, read_header(path).sizes)
    plan = LoadPlan(options.sizes, options.context, host_experts=11)
    llama.llama_model_free(load_model(options, plan, (), lambda _: None, StopFlag()))
