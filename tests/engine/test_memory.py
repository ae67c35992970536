"""Planned memory: against the buffers that llama.cpp logs and totals worked out by hand; the GPUs that it lists."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cases import rows
from tiny_models import Shape, write_quantized

from cerebrum_cli.engine import memory
from cerebrum_cli.engine.drafter import MAX_DRAFT
from cerebrum_cli.engine.llama import bindings
from cerebrum_cli.engine.llama.bindings import accelerators, llama, log
from cerebrum_cli.engine.llama.context import context_params
from cerebrum_cli.engine.llama.load import load_model
from cerebrum_cli.engine.machine import Memory
from cerebrum_cli.engine.memory import (
    Device,
    LayerCounts,
    LoadPlan,
    MemoryNeeds,
    cells,
    checkpoint_budget,
    compute_bytes,
    group_lengths,
    n_outputs_max,
)
from cerebrum_cli.engine.memory_plan import plan_layers
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.contents import Array
from cerebrum_cli.gguf.header import parts_sizes, read_header, read_tables
from cerebrum_cli.gguf.sizes import Hyperparameters, LayerSizes, ModelSizes, layer_windows, model_sizes

MIB, GIB = 2**20, 2**30
GPUS = accelerators()

# A Mistral-7B in a 4-bit quantization, rounded: a layer is 128 MiB of weights and, in 8192 tokens, 32 MiB of KV cache.
MISTRAL = ModelSizes(
    (LayerSizes(128 * MIB, 1024, 1024),) * 32,
    input_bytes=256 * MIB,
    output_bytes=256 * MIB,
    embedding_length=4096,
    activation_length=3 * 14336,
    vocabulary_size=32000,
    n_heads=32,
)
WEIGHTS = (32 * 128 + 512) * MIB
CHAT = ContextOptions(8192, 1, 1, 512)
COMPUTE = 124 * MIB  # 4 bytes x 512 rows x (4 x 4096 + 3 x 14336), and 8 MiB of attention mask
POOL = memory.POOL_BYTES
INPUTS = 24 * MIB  # of the host without a layer: embeddings of 512 rows, twice, and the mask
LOGITS = (4 + memory.SAMPLING_BYTES) * 32000  # and what samplers read
MAMBA = ModelSizes((LayerSizes(16 * MIB, state_bytes=16 * MIB),) * 4, vocabulary_size=32000)


def cuda(free: int) -> Device:
    return Device("CUDA0", "NVIDIA GeForce RTX 4090", free, free)


def logged_mib(path: Path, plan: LoadPlan, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, float]:
    """Load a model without repacking, and sum the buffers that llama.cpp logs: by device, or kind of host memory."""
    logged: list[str] = []
    monkeypatch.setattr(log, "forward", logged.append)
    options = LoadOptions(path, plan.context.length, plan.sizes)
    model = load_model(options, plan, GPUS, lambda _: None, StopFlag())
    vocabulary_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    context = llama.llama_init_from_model(model, context_params(plan.context, vocabulary_size))
    assert context
    llama.llama_free(context)
    llama.llama_model_free(model)
    sums: dict[str, float] = defaultdict(float)
    for device, size in re.findall(r"(\S+) +\w* *buffer size = +([\d.]+) MiB", "\n".join(logged)):
        sums[device] += float(size)
    assert any("compute buffer size =" in line for line in logged)
    return sums


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mixtral.gguf"
    return write_quantized(path, experts=8, shape=Shape(layers=2, width=512, heads=8, kv_heads=2, ffn=512))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "dense.gguf"
    return write_quantized(path, shape=Shape(layers=2, width=1024, heads=8, kv_heads=2, ffn=2816))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ContextOptions(8192, 1, 1, 128),
        ContextOptions(1024, 32, 1, 128),
        ContextOptions(4096, 16, 1, 512, kv_unified=True),
        ContextOptions(2048, 1, 1, 512, flash_attention=False),
    ],
    ids=["one", "batch", "votes", "no-flash-attention"],
)
@pytest.mark.parametrize("model", ["seven", "recurrent_model", "sliding_window_model", "mixtral"])
def test_plan_is_within_3_percent_of_logged_buffers(
    model: str, options: ContextOptions, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model == "sliding_window_model" and options.kv_unified:
        pytest.skip("windows are never shared")
    path: Path = request.getfixturevalue(model)
    sizes = read_header(path).sizes
    planned = LoadPlan(sizes, options).needs.total - checkpoint_budget(sizes, options)  # which are ours
    logged = logged_mib(path, LoadPlan(sizes, options), monkeypatch)
    assert planned / MIB == pytest.approx(sum(logged.values()), rel=0.03, abs=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not GPUS, reason="needs a GPU")
@pytest.mark.parametrize("options", [ContextOptions(4096, 4, 1, 512), ContextOptions(32_768, 1, 1, 512)])
@pytest.mark.parametrize(
    ("model", "layers", "host_experts"),
    [("dense", 3, 0), ("dense", 2, 0), ("dense", 0, 0), ("mixtral", 3, 0), ("mixtral", 2, 0), ("mixtral", 3, 2)],
)
def test_plan_of_gpus_is_not_below_logged_buffers(
    model: str,
    layers: int,
    host_experts: int,
    options: ContextOptions,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path: Path = request.getfixturevalue(model)
    sizes = read_header(path).sizes.with_experts_on_host(host_experts)
    many = 2 if len(GPUS) > 1 and layers == 3 else 1
    offloaded = (1, 2) if many == 2 else (layers,)
    plan = LoadPlan(sizes, options, (*offloaded, *(0,) * (len(GPUS) - many)), host_experts)
    logged = logged_mib(path, plan, monkeypatch)
    for device, need in zip(GPUS, plan.needs.devices, strict=True):
        assert 0 <= need - MIB * logged[device.name] <= 0.03 * need + 12 * MIB + 2 * POOL, device.name


def plan(sizes: ModelSizes, *devices: Device, layers: str = "auto", **options: Any) -> tuple[LayerCounts, MemoryNeeds]:
    """Layers on each GPU, and memory needs, of a chat."""
    context = replace(CHAT, **options)
    offloaded = plan_layers(sizes, layers, context, devices)
    return offloaded, LoadPlan(sizes, context, offloaded).needs


@pytest.mark.parametrize(
    ("devices", "offloaded", "host", "on_devices"),
    [
        ((), (), WEIGHTS + 32 * 32 * MIB + COMPUTE + LOGITS, ()),
        # all but the embeddings
        ((24 * GIB,), (33,), 256 * MIB + INPUTS + LOGITS, ((32 * 160 + 256) * MIB + COMPUTE + POOL,)),
        # 4096 - 512 - 96 - 124 - 88 = 3276 MiB hold the output layer, 256 MiB, and eighteen layers of 160 MiB
        ((4 * GIB,), (19,), (256 + 14 * 160) * MIB + COMPUTE + LOGITS, ((344 + 18 * 160) * MIB + COMPUTE + POOL,)),
        # 2048 - 512 - 96 - 124 = 1316 MiB, and 6144 MiB more: 0.15 and 0.85 of 5376 MiB
        (
            (2 * GIB, 8 * GIB),
            (5, 28),
            256 * MIB + INPUTS + LOGITS,
            (5 * 160 * MIB + COMPUTE + POOL, (27 * 160 + 256) * MIB + COMPUTE + POOL),
        ),
        ((memory.HEADROOM,), (0,), WEIGHTS + 32 * 32 * MIB + COMPUTE + LOGITS, (0,)),
    ],
)
def test_plan_offloads_the_last_layers_that_fit(
    devices: tuple[int, ...], offloaded: tuple[int, ...], host: int, on_devices: tuple[int, ...]
) -> None:
    assert plan(MISTRAL, *map(cuda, devices)) == (offloaded, MemoryNeeds(host, on_devices))


def test_plan_copies_tied_embeddings_to_the_gpu() -> None:
    tied = replace(MISTRAL, is_tied=True, output_bytes=0)
    assert plan(tied, cuda(24 * GIB))[1].devices == plan(MISTRAL, cuda(24 * GIB))[1].devices
    assert plan(tied)[1].host == plan(MISTRAL)[1].host - 256 * MIB


GEMMA = replace(MISTRAL, layers=(*(LayerSizes(128 * MIB, 1024, 1024, window=1024),) * 5, MISTRAL.layers[0]) * 4)


def test_windows_hold_what_a_step_reads() -> None:
    window, dense = GEMMA.layers[4:6]
    chat = replace(CHAT, n_ubatch=128)
    assert (cells(window, chat), cells(dense, chat)) == (1280, 8192), "1,024 and 128 rows, padded to 256"
    assert cells(window, replace(chat, length=1024)) == 1024
    batch = replace(chat, slots=16)
    assert (cells(window, batch), cells(window, replace(batch, kv_unified=True))) == (1280, 8192)
    cache = LoadPlan(GEMMA, batch).needs.host - LoadPlan(GEMMA, chat).needs.host + checkpoint_budget(GEMMA, chat)
    assert cache == 15 * (4096 * (4 * 8192 + 20 * 1280) + 4 * 32000)


def test_checkpoints_are_planned_where_tokens_cannot_be_dropped() -> None:
    window = 20 * 1024 * 4096  # 80 MiB
    assert checkpoint_budget(MISTRAL, CHAT) == 0
    assert checkpoint_budget(GEMMA, CHAT) == 512 * MIB, "six of them"
    assert checkpoint_budget(GEMMA, replace(CHAT, length=1280)) == 0, "a window as large as the context"
    assert checkpoint_budget(GEMMA, replace(CHAT, slots=2)) == 0, "a batch takes none"
    assert checkpoint_budget(GEMMA, replace(CHAT, cache_type_k="f32", cache_type_v="f32")) == 512 * MIB
    assert checkpoint_budget(MAMBA, replace(CHAT, slots=8, kv_unified=True)) == 8 * 64 * MIB
    many = replace(GEMMA, layers=GEMMA.layers * 4)
    assert checkpoint_budget(many, CHAT) == 2 * 4 * window, "at least two"


def test_outputs_are_limited_to_what_steps_need() -> None:
    for slots, n_ubatch, vocabulary, outputs in (
        (1, 128, 32_000, 128),
        (1, 512, 32_000, 262),  # 32 MiB
        (1, 512, 248_320, 64),
        (200, 512, 248_320, 200),
        (16, 8, 248_320, 16),  # llama.cpp requires one for each slot
    ):
        assert n_outputs_max(ContextOptions(8192, slots, 1, n_ubatch), vocabulary) == outputs
    assert MAX_DRAFT < memory.MIN_OUTPUTS, "steps with draft tokens"
    large = replace(MISTRAL, vocabulary_size=248_320)
    assert compute_bytes(large, CHAT) == COMPUTE, "logits of 64 rows are smaller than a layer's activations"


SHORT, LONG = 1280, 32_768


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([], []),
        ([300], [512]),
        ([LONG] + [SHORT] * 64, [SHORT, LONG]),
        ([1324] * 64 + [8192], [1536, 8192]),
        ([1100, 1200, 1300, 1600] * 40, [1792]),  # similar lengths
        ([1324] * 3 + [8192], [8192]),  # few rows
        ([SHORT] * 300 + [4096] * 200 + [LONG] * 9, [SHORT, 4096, LONG]),
    ],
)
def test_plan_groups_lengths_that_are_faster_apart(lengths: list[int], groups: list[int]) -> None:
    assert group_lengths(lengths) == groups


def sizes_of(
    kv_heads: tuple[int, ...], windows: tuple[int, ...] = (), tensors: tuple[str, ...] = (), **values: int
) -> ModelSizes:
    """Sizes by metadata, and the names of tensors of a byte each; in other names, `__` stands for a dot."""
    given: dict[str, int | Array] = {name.replace("__", "."): value for name, value in values.items()}
    given |= {"attention.head_count": 8, "attention.head_count_kv": Array("u32", len(kv_heads), kv_heads)}
    given |= {"attention.sliding_window_pattern": Array("u32", len(windows), windows)} if windows else {}
    keys = hyperparameters("gemma4", len(kv_heads), {"attention.sliding_window": max(windows, default=0), **given})
    return model_sizes(keys, ((name, 1) for name in tensors))


def hyperparameters(architecture: str, layers: int, values: Mapping[str, int | Array]) -> Hyperparameters:
    named = {f"{architecture}.{key}": value for key, value in {"block_count": layers, **values}.items()}
    return Hyperparameters(Path("model.gguf"), {"general.architecture": architecture, **named})


WINDOWED = {"key_length": 512, "value_length": 512, "key_length_swa": 256, "value_length_swa": 128}
SHARED = {f"attention__{name}": value for name, value in {**WINDOWED, "shared_kv_layers": 1}.items()}
PREDICTING = {"nextn_predict_layers": 1, "attention__key_length": 64, "attention__value_length": 64}
LATENT = {"attention__key_length": 576, "attention__value_length": 512, "attention__key_length_mla": 192}


@pytest.mark.parametrize(
    ("kv_heads", "windows", "values", "lengths"),
    [
        ((2, 4, 4, 4), (0, 64, 64, 64), SHARED, [(1024, 1024), (1024, 512), (1024, 512), (0, 0)]),
        ((2, 2, 2), (0,) * 3, PREDICTING, [(128, 128), (128, 128), (0, 0)]),
        ((1, 1), (0,) * 2, LATENT, [(576, 0)] * 2),  # latent attention has no values
    ],
)
def test_sizes_of_windowed_shared_predicting_and_latent_layers(
    kv_heads: tuple[int, ...], windows: tuple[int, ...], values: dict[str, int], lengths: list[tuple[int, int]]
) -> None:
    sizes = sizes_of(kv_heads, windows if any(windows) else (), (), **values)
    assert [(layer.key_length, layer.value_length) for layer in sizes.layers] == lengths
    assert [layer.window for layer in sizes.layers] == [*windows]


@pytest.mark.parametrize(("architecture", "window", "pattern", "windows"), rows("attention_windows"))
def test_sizes_know_the_windows_of_architectures(
    architecture: str, window: int, pattern: int | list[bool], windows: list[int]
) -> None:
    stated = pattern if isinstance(pattern, int) else Array("bool", len(pattern), tuple(pattern))
    values = {"attention.sliding_window": window, "attention.sliding_window_pattern": stated}
    assert layer_windows(hyperparameters(architecture, 7, values)) == tuple(windows)


def test_sizes_of_a_model_in_parts_are_those_of_the_whole(parts: dict[str, Path], chatml_model: Path) -> None:
    whole = read_header(chatml_model).sizes
    assert read_header(next(iter(parts.values()))).sizes != whole
    assert parts_sizes([*parts.values()]) == whole


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
