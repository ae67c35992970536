"""Load plans of models that people have, on machines that people have: everything planned fits in free memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cases import rows

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.events import Event, NoticeEvent
from cerebrum_cli.engine import memory
from cerebrum_cli.engine.memory import Device, FreeMemory, LoadPlan
from cerebrum_cli.engine.memory_plan import HOST_EXPERTS_UBATCH, plan_load
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.gguf.sizes import Hyperparameters, ModelSizes, model_sizes

GB, GIB, MIB = 10**9, 2**30, 2**20


@dataclass(frozen=True, slots=True)
class Shape:
    """A published model: hyperparameters, and MiB of its embeddings, its output matrix, each layer and its experts."""

    architecture: str
    hyperparameters: Mapping[str, int]
    vocabulary: int
    mib: tuple[int, int, int, int]
    full_attention_every: int = 1

    @property
    def sizes(self) -> ModelSizes:
        values = {**self.hyperparameters, "vocab_size": self.vocabulary}
        named = {f"{self.architecture}.{key}": value for key, value in values.items()}
        keys = Hyperparameters(Path("model.gguf"), {"general.architecture": self.architecture, **named})
        return model_sizes(keys, self._tensors())

    def _tensors(self) -> Iterator[tuple[str, int]]:
        embeddings, output, layer, experts = (size * MIB for size in self.mib)
        yield "token_embd.weight", embeddings
        if output:
            yield "output.weight", output
        for index in range(self.hyperparameters["block_count"]):
            attends = (index + 1) % self.full_attention_every == 0
            yield f"blk.{index}.{'attn_k' if attends else 'ssm_out'}.weight", layer
            if experts:
                yield f"blk.{index}.ffn_up_exps.weight", experts


# Sizes are those of published Q4_K_M files; gpt-oss is in MXFP4.
SHAPES = {name: Shape(**given) for name, given in rows("model_shapes").items()}

MEMORY = {f"{size} GB": size * GIB - GIB for size in (8, 12, 16, 32)}  # 1 GiB is in use
CHAT, ASK = ContextOptions(slots=16, kv_unified=True), ContextOptions()
BATCH = ContextOptions(slots=64, batch_invariant=True)
USES = {"chat": (CHAT, True), "ask": (ASK, False), "batch": (BATCH, False)}


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
    return LoadOptions(Path("model.gguf"), 32_768, SHAPES[model].sizes, context, **others)  # type: ignore[arg-type]


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
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("model", SHAPES)
def test_plan_of_weights_cache_and_buffers_fits_in_free_memory(model: str, memory: str, use: str) -> None:
    context, repack = USES[use]
    for machine, free in machines(MEMORY[memory]).items():
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


@pytest.mark.parametrize(
    ("thinks", "room", "length"),  # `room` is the length that memory suffices for
    [
        (False, 65_536, 8192),
        (False, 4096, 4096),
        (False, 512, 512),
        (True, 65_536, 32_768),
        (True, 20_480, 20_480),  # enough for a model that does not think, so without a notice
        (True, 7936, 7936),
    ],
)
def test_plan_context_is_the_default_or_what_fits(thinks: bool, room: int, length: int) -> None:
    chat = replace(options("Mistral 7B"), trained_context=131_072, thinks=thinks)
    needed = memory.HEADROOM + LoadPlan(chat.sizes, ContextOptions(room, n_ubatch=memory.CPU_UBATCH)).needs.host
    limited = f"context limited to {length} tokens by free memory (default: 8192)"
    plan, notices = planned(chat, FreeMemory(needed))
    assert (plan.context.length, notices) == (length, [limited] if length < 8192 else [])
    assert planned(chat, FreeMemory(needed - 1))[0].context.length == min(length, room - 256)


def test_plan_length_is_what_fits_beside_the_weights() -> None:
    chat = options("Mistral 7B", CHAT)
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
    chat = options("Qwen3 30B-A3B", CHAT, repack=True)
    plan, notices = planned(chat, FreeMemory(8 * GB))
    assert notices == [
        "the model (18.5 GB) does not fit in free memory: weights are read from disk for each token",
        "context limited to 256 tokens by free memory (default: 8192)",
    ]
    assert not plan.repack, "these would have to be in memory"
    forced = replace(chat, context=replace(CHAT, length=32768))
    assert planned(forced, FreeMemory(8 * GB))[0].context.length == 32768
    with pytest.raises(EngineError, match=r"needs 3\.\d GB; 2\.0 GB is free"):
        planned(forced, FreeMemory(2 * GB))


def test_plan_of_a_chat_limits_slots_to_the_states_that_fit() -> None:
    hybrid, windowed = options("Qwen3.5 9B", CHAT), options("Gemma 3 12B", CHAT)
    assert planned(options("Mistral 7B", CHAT), FreeMemory(32 * GIB))[0].context.slots == 16
    plenty, scarce = (planned(hybrid, FreeMemory(free))[0] for free in (32 * GIB, 7100 * MIB))
    assert (plenty.context.slots, plenty.context.kv_unified) == (10, True), "50 MiB each, 512 MiB in all"
    assert 1 < scarce.context.slots < 10 and scarce.context.length == 8192
    one = planned(windowed, FreeMemory(32 * GIB))[0].context
    assert (one.slots, one.kv_unified) == (1, False)
    assert planned(replace(windowed, context=BATCH), FreeMemory(32 * GIB))[0].context.slots == 64


MIXTURE = options("Qwen3 30B-A3B", CHAT, repack=True)


def test_plan_keeps_all_experts_on_the_host_if_not_all_layers_fit() -> None:
    for machine, experts, layers in (("8 GB", 48, 49), ("24 GB", 0, 49), ("two", 0, 49), ("unified", 0, 49)):
        plan, _ = planned(MIXTURE, machines(31 * GIB)[machine])
        assert (plan.host_experts, sum(plan.offloaded)) == (experts, layers)
        assert plan.repack is not bool(experts), "repacked experts could not be copied to the GPU"
        assert plan.context.n_ubatch == (HOST_EXPERTS_UBATCH if experts else memory.GPU_UBATCH)


@pytest.mark.parametrize(
    ("cpu_moe", "gpu_layers", "experts", "layers"),
    [
        ("off", "auto", 0, 16),
        ("48", "auto", 48, 49),
        ("100", "10", 48, 10),
        ("auto", "10", 0, 10),
        ("auto", "all", 48, 49),
    ],
)
def test_plan_follows_requested_experts_and_layers(cpu_moe: str, gpu_layers: str, experts: int, layers: int) -> None:
    requested = replace(MIXTURE, cpu_moe=cpu_moe, gpu_layers=gpu_layers)
    plan, _ = planned(requested, machines(31 * GIB)["8 GB"])
    assert (plan.host_experts, sum(plan.offloaded)) == (experts, layers)


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
