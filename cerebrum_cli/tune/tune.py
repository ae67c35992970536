"""Tune a model: choose what to try on this machine, run the search, and create and save the profile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from time import time

from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import format_utc
from cerebrum_cli.engine.bench import ROOM, Bench, BenchError
from cerebrum_cli.engine.machine import available_memory, instruction_set, processors
from cerebrum_cli.engine.memory import (
    CPU_UBATCH,
    QUANTIZED_CACHE_TYPES,
    ContextOptions,
    Device,
    FreeMemory,
    context_needs,
    fits,
)
from cerebrum_cli.engine.memory_plan import plan_slots
from cerebrum_cli.engine.model_options import LoadOptions, Tuning, plan_repacking
from cerebrum_cli.engine.sequence import EXPECTED_REPLY_TOKENS
from cerebrum_cli.engine.step_costs import MAX_ROLLBACK, MEASURED_ROWS, StepCosts
from cerebrum_cli.gguf.architectures import facts_of
from cerebrum_cli.gguf.header import require_generative
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.replies.profiles import (
    Profile,
    TunedUse,
    UseName,
)
from cerebrum_cli.replies.source import AUTO_PARALLEL, draft_problem, load_options, without_user_settings
from cerebrum_cli.tune.candidates import (
    Candidate,
    SearchSpace,
    thread_counts_to_try,
)
from cerebrum_cli.tune.search import SEARCH_S, Search, context_depth

STEPS_S = 10.0  # to measure steps with draft tokens, for each use whose defaults differ
DEPTHS = (8192, 2048, 512, 128)  # tokens of context to decode after: the most that fit, the first with long reasoning
PROMPT_TOKENS = 256  # per slot of a batch, in addition to the reply


@dataclass(frozen=True, slots=True)
class TuningResult:
    """A measured profile, the candidates tried beside the defaults, and whether other programs used the CPU.

    `changes` are the settings before and after of each use for which they differ.
    """

    profile: Profile
    tried: tuple[Candidate, ...]
    changes: Mapping[UseName, tuple[Tuning, Tuning]]
    is_disturbed: bool


def tune_model(
    bench: Bench,
    model: InstalledModel,
    settings: Settings,
    previous: Profile | None,
    profile_key: Callable[[tuple[Device, ...]], tuple[str, str, str]],
) -> Generator[StageEvent, None, TuningResult]:
    """Run a search on a bench, which the caller closes. `previous` is the profile in use.

    `profile_key` gets the GPUs found, and gives the identity of the model, of the machine and of the llama.cpp build.
    """
    space, search_s = search_space(model, settings), SEARCH_S
    if can_speculate := draft_problem(model) is None:
        search_s -= STEPS_S * len({space.chat, space.ask})
    search = Search(bench, space, search_s)
    uses = yield from search.run()
    if can_speculate:
        most = 1 + MAX_ROLLBACK if facts_of(model.header.architecture).rolls_back else MEASURED_ROWS[-1]
        uses |= yield from measure_steps(bench, uses, space, most)
    old = {name: previous.uses[name].tuning if previous else Tuning() for name in uses}
    changes = {name: (without_user_settings(old[name], settings), used.tuning) for name, used in uses.items()}
    return TuningResult(
        Profile(*profile_key(bench.devices), format_utc(time()), uses),
        tuple(candidate for candidate in search.candidates if candidate.baseline),
        {name: (before, after) for name, (before, after) in changes.items() if before != after},
        bench.disturbed_jobs > 0,
    )


def measure_steps(
    bench: Bench, uses: Mapping[UseName, TunedUse], space: SearchSpace, most: int
) -> Generator[StageEvent, None, dict[UseName, TunedUse]]:
    """The uses that generate one sequence, with costs of steps with draft tokens; equal ones are measured once.

    Steps have at most `most` rows.
    """
    defaults: dict[UseName, Tuning] = {"chat": space.chat, "ask": space.ask}
    measured: dict[tuple[Tuning, tuple[int, ...]], StepCosts | None] = {}
    result: dict[UseName, TunedUse] = {}
    for done, (name, default) in enumerate(defaults.items()):
        tuning = replace(default, **uses[name].tuning.overrides)
        rows = tuple(count for count in MEASURED_ROWS if count <= min(most, tuning.n_ubatch or count))
        job = replace(tuning, n_ubatch=None), rows
        if job not in measured:
            yield StageEvent("steps with draft tokens", done, len(defaults))
            try:
                measured[job] = bench.step_costs(*job, STEPS_S, context_depth(uses[name].speeds.prompt))
            except BenchError:  # another program has taken the memory meanwhile
                measured[job] = None
        result[name] = replace(uses[name], step_costs=measured[job])
    return result


def search_space(model: InstalledModel, settings: Settings) -> SearchSpace:
    cores, free = processors(), FreeMemory(available_memory() - model.size)
    sized = replace(settings, ctx=EXPECTED_REPLY_TOKENS + PROMPT_TOKENS)
    options = load_options(model, sized, ContextOptions(slots=AUTO_PARALLEL))
    context = replace(options.context, n_ubatch=CPU_UBATCH)
    slots = plan_slots(model.sizes, AUTO_PARALLEL, context, (), free)
    depths = (
        depth
        for depth in DEPTHS[0 if options.file.thinks else 1 :]
        if depth <= model.trained_context
        and fits(context_needs(model.sizes, replace(context, length=depth + ROOM, slots=1)), free)
    )
    may_turn_off = (
        not settings.flash_attn
        and settings.cache_type_v not in QUANTIZED_CACHE_TYPES
        and facts_of(model.header.architecture).has_flash_attention
    )
    return SearchSpace(
        chat=Tuning(repack=plan_repacking(model.quantization, is_chat=True)),
        ask=Tuning(repack=plan_repacking(model.quantization)),
        batch=Tuning(repack=plan_repacking(model.quantization, is_batch=True), slots=slots),
        threads=() if settings.threads else thread_counts_to_try(cores.threads, cores.most_threads),
        layers=model.header.n_layers if settings.gpu_layers == "auto" else 0,
        depth=next(depths, DEPTHS[-1]),
        # not in a batch on x86-64, whose answers would then depend on speculative decoding
        no_flash=tuple(
            is_batch
            for is_batch in (False, True)
            if may_turn_off and not (is_batch and instruction_set() in ("x86", "avx512"))
        ),
    )


def bench_options(model: InstalledModel, settings: Settings) -> LoadOptions:
    """Load options of a chat without a profile. ModelFileError if the model cannot be loaded, or cannot answer."""
    require_generative(model.path, model.header)
    return replace(load_options(model, settings), repack=plan_repacking(model.quantization, is_chat=True))
