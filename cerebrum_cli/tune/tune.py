"""Tune a model: choose what to try on this machine, run the search, and create and save the profile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from platform import machine as architecture
from time import perf_counter, time

from cerebrum_cli.core.errors import CerebrumError, ConfigError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.core.files import lock_file, translate_os_errors
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import format_utc
from cerebrum_cli.engine.bench import Bench, BenchError
from cerebrum_cli.engine.machine import available_memory, processors
from cerebrum_cli.engine.memory import CPU_UBATCH, ContextOptions, Device, FreeMemory
from cerebrum_cli.engine.memory_plan import plan_slots
from cerebrum_cli.engine.model_options import LoadOptions, Tuning, plan_repacking
from cerebrum_cli.engine.sequence import EXPECTED_REPLY_TOKENS
from cerebrum_cli.engine.step_costs import MAX_ROLLBACK, MEASURED_ROWS, StepCosts
from cerebrum_cli.gguf.architectures import facts_of
from cerebrum_cli.gguf.header import require_generative
from cerebrum_cli.model.profiles import (
    Profile,
    ProfileStore,
    TunedUse,
    UseName,
)
from cerebrum_cli.model.source import draft_problem, load_options, without_user_settings
from cerebrum_cli.models.model import InstalledModel
from cerebrum_cli.tune.candidates import (
    BATCH_SLOTS,
    Candidate,
    SearchSpace,
    thread_counts_to_try,
    unplanned,
)
from cerebrum_cli.tune.search import SEARCH_S, Search, context_depth

MAX_BATCH_SLOTS = 64
STEPS_S = 10.0  # to measure steps with drafted tokens, for each use whose defaults differ
PROMPT_TOKENS = 256  # per slot of a batch, in addition to the reply


@dataclass(frozen=True, slots=True)
class TuningResult:
    """A measured profile, the candidates tried beside the defaults, and whether other programs used the CPU.

    `untried` are settings without a candidate, with the reason; `changes` are the settings before and after of each use
    for which they differ.
    """

    profile: Profile
    tried: tuple[Candidate, ...]
    untried: Mapping[str, str]
    changes: Mapping[UseName, tuple[Tuning, Tuning]]
    is_disturbed: bool


def tune_model(
    bench: Bench,
    model: InstalledModel,
    settings: Settings,
    previous: Profile | None,
    profile_key: Callable[[tuple[Device, ...]], tuple[str, str, str]],
    clock: Callable[[], float] = perf_counter,
    steps_s: float = STEPS_S,
) -> Generator[StageEvent, None, TuningResult]:
    """Run a search on a bench, which the caller closes. `previous` is the profile in use.

    `profile_key` gets the GPUs found, and gives the identity of the model, of the machine and of the llama.cpp build.
    """
    space, search_s = search_space(model, settings), SEARCH_S
    if has_drafts := draft_problem(model) is None:
        search_s -= steps_s * len({space.chat, space.ask})
    search = Search(bench, space, search_s, clock)
    uses = yield from search.run()
    if has_drafts:
        most = 1 + MAX_ROLLBACK if facts_of(model.header.architecture).rolls_back else MEASURED_ROWS[-1]
        uses |= yield from measure_steps(bench, uses, space, steps_s, most)
    profile = Profile(*profile_key(bench.devices), format_utc(time()), uses)
    old = {name: previous.uses[name].tuning if previous else Tuning() for name in uses}
    changes = {name: (without_user_settings(old[name], settings), used.tuning) for name, used in uses.items()}
    return TuningResult(
        profile,
        tuple(candidate for candidate in search.candidates if candidate.baseline),
        {**search.untried, **unplanned(space, settings)},
        {name: (before, after) for name, (before, after) in changes.items() if before != after},
        bench.disturbed_jobs > 0,
    )


def measure_steps(
    bench: Bench, uses: Mapping[UseName, TunedUse], space: SearchSpace, seconds: float, most: int = MEASURED_ROWS[-1]
) -> Generator[StageEvent, None, dict[UseName, TunedUse]]:
    """The uses that generate one sequence, with costs of steps with drafted tokens; equal ones are measured once.

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
            yield StageEvent("steps with drafted tokens", done, len(defaults))
            try:
                measured[job] = bench.step_costs(*job, seconds, context_depth(uses[name].speeds.prompt))
            except BenchError:  # another program has taken the memory meanwhile
                measured[job] = None
        result[name] = replace(uses[name], step_costs=measured[job])
    return result


def search_space(model: InstalledModel, settings: Settings) -> SearchSpace:
    """The default settings of a model on this machine, and what can be tried instead."""
    cores, free = processors(), FreeMemory(available_memory() - model.size)
    length = EXPECTED_REPLY_TOKENS + PROMPT_TOKENS
    context = load_options(model, replace(settings, ctx=length), ContextOptions(slots=MAX_BATCH_SLOTS)).context
    context = replace(context, n_ubatch=CPU_UBATCH)
    slots = plan_slots(model.sizes, MAX_BATCH_SLOTS, context, (), free)
    ask = Tuning(repack=plan_repacking(model.quantization, False, architecture()))
    return SearchSpace(
        chat=Tuning(repack=plan_repacking(model.quantization, True, architecture())),
        ask=ask,
        batch=replace(ask, slots=min(BATCH_SLOTS, slots)),
        threads=() if settings.threads else thread_counts_to_try(cores.threads, cores.most_threads),
        slots=slots,
        layers=model.header.n_layers if settings.gpu_layers == "auto" else 0,
    )


def bench_options(model: InstalledModel, settings: Settings) -> LoadOptions:
    """Load options of a chat without a profile. ModelFileError if the model cannot be loaded, or cannot answer."""
    require_generative(model.path, model.header)
    return replace(load_options(model, settings), repack=plan_repacking(model.quantization, True, architecture()))


@contextmanager
def tuning_lock(directory: Path) -> Iterator[None]:
    """Allow one search at a time, since two would slow each other down.

    CerebrumError if another is running; ConfigError if profiles cannot be written, before anything is measured.
    """
    busy = CerebrumError("another cerebrum tune is running", "wait until it has finished")
    with translate_os_errors(ConfigError, directory):
        directory.mkdir(parents=True, exist_ok=True)
        lock = lock_file(directory / "lock", busy, is_required=False)
    with lock:
        yield


def update_store(store: ProfileStore, profile: Profile, fallback: Profile | None) -> None:
    """Save a profile, or delete the previous one if it changes nothing and no use can draft tokens. Raises ConfigError.

    `fallback` is the profile that is used where the store has none.
    """
    with translate_os_errors(ConfigError, store.directory):
        if profile.is_default and not profile.uses_with_drafts and fallback is None:
            store.discard(profile.model)
        else:
            store.save(profile)
