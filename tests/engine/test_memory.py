"""Planned memory: against what llama.cpp logs, by hand, and for models and machines that people have; and the GPUs."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cases import rows
from tiny_models import Shape, write_quantized

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.engine import memory
from cerebrum_cli.engine.drafter import MAX_DRAFT
from cerebrum_cli.engine.llama import bindings
from cerebrum_cli.engine.llama.bindings import accelerators, llama, log
from cerebrum_cli.engine.llama.context import context_params
from cerebrum_cli.engine.llama.load import load_model
from cerebrum_cli.engine.machine import Memory
from cerebrum_cli.engine.memory import Device, FreeMemory, LayerCounts, LoadPlan, MemoryNeeds, checkpoint_budget
from cerebrum_cli.engine.memory_plan import HOST_EXPERTS_UBATCH, plan_layers, plan_load
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.engine.step import StopFlag
from cerebrum_cli.gguf.contents import Array
from cerebrum_cli.gguf.header import parts_sizes, read_header, read_tables
from cerebrum_cli.gguf.sizes import Hyperparameters, LayerSizes, ModelSizes, layer_windows, model_sizes

GB, GIB, MIB = 10**9, 2**30, 2**20
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
        pytest.skip("needs a shared cache, which windows never have")
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
    assert (memory.cells(window, chat), memory.cells(dense, chat)) == (1280, 8192), "1,024 and 128 rows, padded to 256"
    assert memory.cells(window, replace(chat, length=1024)) == 1024
    batch = replace(chat, slots=16)
    assert (memory.cells(window, batch), memory.cells(window, replace(batch, kv_unified=True))) == (1280, 8192)
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
        assert memory.n_outputs_max(ContextOptions(8192, slots, 1, n_ubatch), vocabulary) == outputs
    assert MAX_DRAFT < memory.MIN_OUTPUTS, "steps with draft tokens"
    large = replace(MISTRAL, vocabulary_size=248_320)
    assert memory.compute_bytes(large, CHAT) == COMPUTE, "logits of 64 rows are smaller than a layer's activations"


SHORT, LONG = 1280, 32_768


def test_plan_groups_lengths_that_are_faster_apart() -> None:
    for lengths, groups in (
        *(([], []), ([300], [512])),
        ([LONG] + [SHORT] * 64, [SHORT, LONG]),
        ([1324] * 64 + [8192], [1536, 8192]),
        ([1100, 1200, 1300, 1600] * 40, [1792]),  # similar lengths
        ([1324] * 3 + [8192], [8192]),  # few rows
        ([SHORT] * 300 + [4096] * 200 + [LONG] * 9, [SHORT, 4096, LONG]),
    ):
        assert memory.group_lengths(lengths) == groups


def keys_of(architecture: str, values: Mapping[str, int | Array]) -> Hyperparameters:
    named = {f"{architecture}.{key}": value for key, value in values.items()}
    return Hyperparameters(Path("model.gguf"), {"general.architecture": architecture, **named})


@pytest.mark.parametrize(("name", "kv_heads", "windows", "values", "lengths"), rows("layer_lengths"))
def test_sizes_of_layers_that_differ(
    name: str, kv_heads: list[int], windows: list[int], values: dict[str, int], lengths: list[list[int]]
) -> None:
    layers: dict[str, int | Array] = {
        "block_count": len(kv_heads),
        "attention.head_count": 8,
        "attention.head_count_kv": Array("u32", len(kv_heads), tuple(kv_heads)),
        "attention.sliding_window": max(windows),
        "attention.sliding_window_pattern": Array("u32", len(windows), tuple(windows)),
    }
    sizes = model_sizes(keys_of("gemma4", {**layers, **values}), ())
    assert [[layer.key_length, layer.value_length] for layer in sizes.layers] == lengths
    assert [layer.window for layer in sizes.layers] == windows


@pytest.mark.parametrize(("architecture", "window", "pattern", "windows"), rows("attention_windows"))
def test_sizes_know_the_windows_of_architectures(
    architecture: str, window: int, pattern: int | list[bool], windows: list[int]
) -> None:
    stated = pattern if isinstance(pattern, int) else Array("bool", len(pattern), tuple(pattern))
    values = {"block_count": 7, "attention.sliding_window": window, "attention.sliding_window_pattern": stated}
    assert layer_windows(keys_of(architecture, values)) == tuple(windows)


def test_sizes_of_a_model_in_parts_are_those_of_the_whole(parts: dict[str, Path], chatml_model: Path) -> None:
    whole = read_header(chatml_model).sizes
    assert read_header(next(iter(parts.values()))).sizes != whole
    assert parts_sizes([*parts.values()]) == whole


class Listed(NamedTuple):
    """A device as llama.cpp lists it, in MiB."""

    name: str
    description: str
    type: str
    total: int
    free: int


HOST = 24 * GIB  # available
TYPES = ("CPU", "GPU", "INTEGRATED", "ACCELERATOR")  # in the order of ggml_backend_dev_type


def find_gpus(monkeypatch: pytest.MonkeyPatch, listed: Sequence[Listed]) -> tuple[Device, ...]:
    """Find the GPUs of a list, beside a processor."""

    def write_memory(handle: int, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = listed[handle].free * MIB, listed[handle].total * MIB

    functions: dict[str, Any] = {
        "ggml_backend_dev_count": lambda: len(listed),
        "ggml_backend_dev_get": lambda index: index,
        "ggml_backend_dev_type": lambda handle: TYPES.index(listed[handle].type),
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


@pytest.mark.parametrize(("listed", "names", "is_unified"), rows("listed_devices"))
def test_memory_of_the_host_is_counted_once(
    monkeypatch: pytest.MonkeyPatch, listed: list[Any], names: list[str], is_unified: bool
) -> None:
    devices = [Listed(*device) for device in listed]
    gpus = find_gpus(monkeypatch, [*devices, Listed("CPU", "a processor", "CPU", 32_000, 24_000)])
    assert [(gpu.name, gpu.is_unified) for gpu in gpus] == [(name, is_unified) for name in names]
    for gpu, device in zip(gpus, devices, strict=False):
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


# Load plans.


def published(
    architecture: str,
    hyperparameters: Mapping[str, int],
    vocabulary: int,
    mib: Sequence[int],
    full_attention_every: int,
) -> ModelSizes:
    """Sizes of a published model, by MiB of its embeddings, its output matrix, each layer, and each layer's experts."""
    embeddings, output, layer, experts = (size * MIB for size in mib)
    tensors = {"token_embd.weight": embeddings} | ({"output.weight": output} if output else {})
    for index in range(hyperparameters["block_count"]):
        attends = (index + 1) % full_attention_every == 0
        tensors[f"blk.{index}.{'attn_k' if attends else 'ssm_out'}.weight"] = layer
        tensors |= {f"blk.{index}.ffn_up_exps.weight": experts} if experts else {}
    values = {**hyperparameters, "vocab_size": vocabulary}
    return model_sizes(keys_of(architecture, values), tensors.items())


# Sizes are those of published Q4_K_M files; gpt-oss is in MXFP4.
SIZES = {name: published(**given) for name, given in rows("model_shapes").items()}

VOTES, ASK = ContextOptions(slots=16, kv_unified=True), ContextOptions()
BATCH = ContextOptions(slots=64, batch_invariant=True)
USES = {"chat": (VOTES, True), "ask": (ASK, False), "batch": (BATCH, False)}


def machines(memory: int) -> dict[str, FreeMemory]:
    """Machines with so much free memory: without a GPU, with one of 8 or 24 GB, with both, and with unified memory."""
    small, large = (Device(f"CUDA{index}", "a GPU", free, free) for index, free in enumerate((7 * GIB, 23 * GIB)))
    shared = Device("MTL0", "Apple M4", memory * 3 // 4, memory * 3 // 4, is_unified=True)
    return {
        "CPU": FreeMemory(memory),
        "8 GB": FreeMemory(memory, (small,)),
        "24 GB": FreeMemory(memory, (large,)),
        "two": FreeMemory(memory, (small, large)),
        "unified": FreeMemory(memory, (shared,)),
    }


def options(model: str, context: ContextOptions = ASK, **others: object) -> LoadOptions:
    return LoadOptions(Path("model.gguf"), 32_768, SIZES[model], context, **others)  # type: ignore[arg-type]


def planned(load_options: LoadOptions, free: FreeMemory) -> tuple[LoadPlan, list[str]]:
    events: list[Event] = []
    plan = plan_load(load_options, free, events.append)
    return plan, [event.message for event in events if isinstance(event, NoticeEvent)]


def beside_weights(plan: LoadPlan, free: FreeMemory) -> FreeMemory:
    """Free memory once the weights are loaded, also those that are mapped."""
    pairs = zip(free.devices, plan.weights.devices, strict=True)
    devices = tuple(replace(each, free=each.free - need) for each, need in pairs)
    return FreeMemory(free.host - plan.weights.on_host(free.devices), devices)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("gib", [7, 11, 15, 31])  # 1 GiB is in use
@pytest.mark.parametrize("model", SIZES)
def test_plan_of_weights_cache_and_buffers_fits_in_free_memory(model: str, gib: int, use: str) -> None:
    context, repack = USES[use]
    for machine, free in machines(gib * GIB).items():
        plan, notices = planned(options(model, context, repack=repack), free)
        if "does not fit in free memory" in "".join(notices):
            assert plan.context.length == 256 and not plan.repack
            assert plan.sizes.weight_bytes + GIB > free.host, machine
            continue
        assert plan.repack is (repack and not plan.host_experts)
        if use != "batch":
            assert plan.needs.fits(free), machine
            continue
        left = beside_weights(plan, free)
        for length in (320, 1280, plan.context.length):
            slots = plan.slots_for(length, left)
            is_least = slots == 1 and length > 1280
            fitted = plan.with_context(length=length, slots=slots)
            assert is_least or fitted.needs.fits(free), (machine, length, slots)


def test_plan_context_is_the_default_or_what_fits() -> None:
    for thinks, room, length in (
        *((False, 65_536, 8192), (False, 4096, 4096), (False, 512, 512)),
        # 20,480 tokens are enough for a model that does not think, so without a notice
        *((True, 65_536, 32_768), (True, 20_480, 20_480), (True, 7936, 7936)),
    ):
        chat = replace(options("Mistral 7B"), trained_context=131_072, thinks=thinks)
        needed = memory.HEADROOM + LoadPlan(chat.sizes, ContextOptions(room, n_ubatch=memory.CPU_UBATCH)).needs.host
        limited = f"context limited to {length} tokens by free memory (default: 8192)"
        plan, notices = planned(chat, FreeMemory(needed))
        assert (plan.context.length, notices) == (length, [limited] if length < 8192 else []), (thinks, room)
        assert planned(chat, FreeMemory(needed - 1))[0].context.length == min(length, room - 256)


def test_plan_length_is_what_fits_beside_the_weights() -> None:
    chat = options("Mistral 7B", VOTES)
    plan, _ = planned(chat, FreeMemory(64 * GIB))
    needed = memory.HEADROOM + plan.with_context(length=20_480, slots=1).context_needs.host
    for free, expected in ((64 * GIB, 32_000), (needed, 20_480), (needed - 1, 20_224)):
        assert plan.longest_context(32_000, FreeMemory(free)) == expected


def test_plan_context_uses_the_memory_of_a_gpu_only_if_allowed() -> None:
    free = machines(4 * GIB)
    chat = options("Mistral 7B")
    assert planned(chat, free["8 GB"])[0].context.length == 8192
    assert planned(replace(chat, gpu_layers="0"), free["8 GB"])[0].context.length == 256
    assert planned(chat, free["unified"])[0].context.length == 256


@pytest.mark.parametrize("use", ["chat", "ask"])
def test_plan_refuses_a_context_that_would_evict_the_weights(use: str) -> None:
    context, repack = USES[use]
    requested = options("Mistral 7B", replace(context, length=32768), repack=repack)
    with pytest.raises(EngineError) as caught:
        planned(requested, FreeMemory(8 * GB))
    assert caught.value.message == (
        "a context of 32768 tokens needs 8.8 GB including the model's weights; 8.0 GB is free"
    )
    assert caught.value.hint == "use --ctx 26880 or less"
    accepted = replace(requested, context=replace(context, length=26880))
    assert planned(accepted, FreeMemory(8 * GB))[0].context.length == 26880
    assert planned(requested, machines(8 * GB)["24 GB"])[0].context.length == 32768


def test_plan_maps_weights_beyond_free_memory() -> None:
    chat = options("Qwen3 30B-A3B", VOTES, repack=True)
    plan, notices = planned(chat, FreeMemory(8 * GB))
    assert notices == [
        "the model (18.5 GB) does not fit in free memory: weights are read from disk for each token",
        "context limited to 256 tokens by free memory (default: 8192)",
    ]
    assert not plan.repack, "these would have to be in memory"
    forced = replace(chat, context=replace(VOTES, length=32768))
    assert planned(forced, FreeMemory(8 * GB))[0].context.length == 32768
    with pytest.raises(EngineError, match=r"needs 3\.\d GB; 2\.0 GB is free"):
        planned(forced, FreeMemory(2 * GB))


def test_plan_of_a_chat_limits_slots_to_the_states_that_fit() -> None:
    hybrid, windowed = options("Qwen3.5 9B", VOTES), options("Gemma 3 12B", VOTES)
    assert planned(options("Mistral 7B", VOTES), FreeMemory(32 * GIB))[0].context.slots == 16
    plenty, scarce = (planned(hybrid, FreeMemory(free))[0] for free in (32 * GIB, 7100 * MIB))
    assert (plenty.context.slots, plenty.context.kv_unified) == (10, True), "50 MiB each, 512 MiB in all"
    assert 1 < scarce.context.slots < 10 and scarce.context.length == 8192
    one = planned(windowed, FreeMemory(32 * GIB))[0].context
    assert (one.slots, one.kv_unified) == (1, False)
    assert planned(replace(windowed, context=BATCH), FreeMemory(32 * GIB))[0].context.slots == 64


MIXTURE = options("Qwen3 30B-A3B", VOTES, repack=True)


@pytest.mark.parametrize(("machine", "cpu_moe", "gpu_layers", "experts", "layers"), rows("planned_experts"))
def test_plan_keeps_experts_on_the_host_as_needed_or_requested(
    machine: str, cpu_moe: str, gpu_layers: str, experts: int, layers: int
) -> None:
    requested = replace(MIXTURE, cpu_moe=cpu_moe, gpu_layers=gpu_layers)
    plan, _ = planned(requested, machines(31 * GIB)[machine])
    assert (plan.host_experts, sum(plan.offloaded)) == (experts, layers)
    assert plan.repack is not bool(experts), "repacked experts could not be copied to the GPU"
    assert plan.context.n_ubatch == (HOST_EXPERTS_UBATCH if experts else memory.GPU_UBATCH)


def test_plan_without_a_gpu_refuses_experts_on_the_cpu() -> None:
    for accepted in ("auto", "off"):
        assert not planned(replace(MIXTURE, cpu_moe=accepted), FreeMemory(32 * GIB))[0].host_experts
    with pytest.raises(UsageError) as caught:
        planned(replace(MIXTURE, cpu_moe="4"), FreeMemory(32 * GIB))
    assert caught.value.message == "cpu_moe=4 needs a GPU"


def test_plan_of_a_vocabulary_alone_needs_no_memory() -> None:
    requested = replace(MIXTURE, cpu_moe="4", vocabulary_only=True)
    for free in (FreeMemory(GIB), *machines(GIB).values()):
        plan, notices = planned(requested, free)
        assert (plan.context.length, notices) == (8192, [])
        assert beside_weights(plan, free).devices == free.devices


def test_plan_of_a_mixture_on_a_cpu_has_large_steps() -> None:
    for model, n_ubatch in (("Qwen3 30B-A3B", 512), ("gpt-oss-20b", 512), ("Mistral 7B", memory.CPU_UBATCH)):
        assert planned(options(model), FreeMemory(32 * GIB))[0].context.n_ubatch == n_ubatch
    assert planned(options("gpt-oss-20b", ContextOptions(n_ubatch=64)), FreeMemory(32 * GIB))[0].context.n_ubatch == 64
