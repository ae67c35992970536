"""The search for the fastest settings, on scripted speeds, and the text it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from random import Random
from typing import Any

import pytest
from scripted_bench import ScriptedBench, SpeedModel

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.engine.bench import BenchJob
from cerebrum_cli.engine.memory import Device
from cerebrum_cli.engine.model_options import Tuning
from cerebrum_cli.replies.profiles import Speeds, TunedUse, UseName
from cerebrum_cli.tune.candidates import USES, Candidate, SearchSpace, thread_counts_to_try
from cerebrum_cli.tune.search import SEARCH_S, Search

BASELINE, BATCH_BASELINE = Tuning(repack=True), Tuning(repack=False, slots=64)
SPACE = SearchSpace(BASELINE, BASELINE, BATCH_BASELINE, threads=(1, 4), layers=32, depth=2048, no_flash=(False, True))
GPU = Device("CUDA0", "NVIDIA H200", 140_000_000_000, 150_000_000_000)
NOT_REPACKED = {("repack", False): (1.5, 0.9)}
SINGLE_USES: tuple[UseName, ...] = ("chat", "ask")
SLOW_PREFILL = Speeds(2.0, 20.0, 8.0)  # enough to matter in a chat


def run_search(
    bench: ScriptedBench, search_s: float = 1e9, space: SearchSpace = SPACE, events: list[StageEvent] | None = None
) -> tuple[dict[UseName, TunedUse], Search, list[StageEvent]]:
    search = Search(bench, space, search_s=search_s, clock=bench.clock)
    running, events = search.run(), [] if events is None else events
    while True:
        try:
            events.append(next(running))
        except StopIteration as stopped:
            uses: dict[UseName, TunedUse] = stopped.value
            return uses, search, events


def overrides_by_use(uses: dict[UseName, TunedUse]) -> dict[str, dict[str, Any]]:
    """Settings other than the defaults, by use; uses with default settings are omitted."""
    return {name: tuned.tuning.overrides for name, tuned in uses.items() if tuned.tuning.overrides}


def candidates_with(search: Search, **settings: Any) -> list[Candidate]:
    return [each for each in search.candidates if settings.items() <= each.tuning.overrides.items()]


def is_not_repacked(tuning: Tuning) -> bool:
    return tuning.repack is False and not tuning.slots


def true_gain(speed_model: SpeedModel, tuned: TunedUse, name: UseName) -> float:
    """Speedup of a use without measurement noise."""
    use = next(use for use in USES if use.name == name)
    baseline = BATCH_BASELINE if use.is_batch else BASELINE
    return use.gain(speed_model(Tuning(**{**baseline.overrides, **tuned.tuning.overrides})), speed_model(baseline))


FASTEST: Mapping[str, tuple[SpeedModel, dict[str, dict[str, Any]]]] = {
    "nothing is faster": (SpeedModel(), {}),
    "an earlier first token counts for ask": (SpeedModel(NOT_REPACKED), {"ask": {"repack": False}}),
    "the load counts for a short answer": (
        SpeedModel({("repack", False): (1.0, 0.9)}, load_s={True: 12.0, False: 1.0}),
        {"ask": {"repack": False}},
    ),
    "threads differ for prefill and decode": (
        SpeedModel(
            {
                ("n_threads_batch", 4): (1.4, 1.0),
                ("n_threads", 4): (1.0, 0.6),
                ("n_threads_batch", 1): (0.5, 1.0),
                ("n_threads", 1): (1.0, 1.3),
            }
        ),
        {name: {"n_threads": 1, "n_threads_batch": 4} for name in SINGLE_USES},
    ),
    "a batch has settings of its own": (
        SpeedModel(batch={("repack", True): (1.2, 1.3), ("slots", 32): (1.0, 1.4), ("slots", 16): (1.0, 0.8)}),
        {"batch": {"repack": True, "slots": 32}},
    ),
    "flash attention slows down prompts": (
        SpeedModel({("flash_attention", False): (2.0, 1.0)}, {("flash_attention", False): (2.0, 1.0)}),
        {name: {"flash_attention": False} for name in ("ask", "batch")},
    ),
}


@pytest.mark.parametrize("case", FASTEST)
def test_search_chooses_the_fastest_settings_of_each_use(case: str) -> None:
    speed_model, expected = FASTEST[case]
    uses, _, _ = run_search(ScriptedBench(speed_model))
    assert overrides_by_use(uses) == expected
    for name, tuned in uses.items():
        baseline = BATCH_BASELINE if name == "batch" else BASELINE
        speeds = speed_model(replace(baseline, **tuned.tuning.overrides))
        assert asdict(tuned.speeds) == pytest.approx(asdict(speeds))
        assert tuned.gain == pytest.approx(true_gain(speed_model, tuned, name))


@pytest.mark.parametrize(("depth", "is_chosen"), [(512, False), (8192, True)])
def test_search_finds_that_flash_attention_is_slow_in_a_long_context(depth: int, is_chosen: bool) -> None:
    class DeepBench(ScriptedBench):
        def speed(self, tuning: Tuning, job: BenchJob) -> float:
            is_slow = job.kind == "decode" and tuning.flash_attention is None
            return super().speed(tuning, job) / (1 + job.depth / 32_768 if is_slow else 1)

    bench = DeepBench()
    uses, _, _ = run_search(bench, space=SPACE._replace(depth=depth))
    assert overrides_by_use(uses) == ({"chat": {"flash_attention": False}} if is_chosen else {})
    decoded = {(job.sequences > 1, job.depth, job.depth // job.copies) for _, job in bench.jobs if job.kind == "decode"}
    evaluated = 60  # in two seconds
    assert decoded == {(False, depth, depth // -(-depth // evaluated)), (True, 90, 90)}


@pytest.mark.parametrize(
    ("prefill", "decode", "load_s", "is_chosen"),
    [
        (1.0, 0.83, 0.2, True),  # 256 tokens take 1.13 times as long
        (1.0, 0.7, 0.2, False),  # 1.33 times
        (0.5, 1.0, 0.2, False),  # only after a long prompt: 1.6 times
    ],
)
def test_search_limits_what_an_earlier_first_token_costs(
    prefill: float, decode: float, load_s: float, is_chosen: bool
) -> None:
    speed_model = SpeedModel(single={("repack", False): (prefill, decode)}, load_s={False: load_s})
    uses, _, _ = run_search(ScriptedBench(speed_model))
    assert uses["ask"].tuning == (Tuning(repack=False) if is_chosen else Tuning())


def test_search_compares_ask_with_defaults_of_its_own() -> None:
    space = SPACE._replace(ask=Tuning(repack=False))
    speed_model = SpeedModel(single={("repack", False): (1.5, 0.9)}, load_s={True: 4.0, False: 0.2})
    bench = ScriptedBench(speed_model)
    uses, search, events = run_search(bench, space=space)
    assert overrides_by_use(uses) == {}
    assert asdict(uses["chat"].speeds) == pytest.approx(asdict(speed_model(BASELINE)))
    assert asdict(uses["ask"].speeds) == pytest.approx(asdict(speed_model(Tuning(repack=False))))
    assert [event.stage for event in events[:2]] == ["defaults", "ask, defaults"]
    assert [each.tuning for each in search.candidates].count(Tuning(repack=False)) == 1
    slow_load = SpeedModel(single={("repack", False): (0.5, 0.5)})
    assert overrides_by_use(run_search(ScriptedBench(slow_load), space=space)[0]) == {"ask": {"repack": True}}
    faster = SpeedModel(single={("repack", False): (1.5, 1.2)})
    assert overrides_by_use(run_search(ScriptedBench(faster), space=space)[0]) == {"chat": {"repack": False}}


def test_search_times_two_loads_and_takes_the_shorter() -> None:
    class VaryingBench(ScriptedBench):
        def _load(self, tuning: Tuning) -> float:
            if tuning.repack is False and tuning not in self.loaded:
                self.speed_model = SpeedModel(load_s={False: next(times)})
            return ScriptedBench._load(self, tuning)

    times = iter([9.0, 0.4, 0.3, *[0.5] * 99])
    uses, _, _ = run_search(VaryingBench(), space=SPACE._replace(ask=Tuning(repack=False)))
    assert uses["ask"].speeds.load_s == 0.3


def test_search_ignores_gains_below_the_minimum() -> None:
    uses, search, _ = run_search(ScriptedBench(SpeedModel(single={("repack", False): (1.04, 1.04)})))
    assert search.best["chat"].tuning.repack is False
    assert overrides_by_use(uses) == {}


def test_search_combines_settings() -> None:
    speed_model = SpeedModel(
        single={
            ("repack", False): (1.3, 1.3),
            ("n_threads", 4): (1.0, 1.2),
            ("n_threads_batch", 4): (1.2, 1.0),
            ("n_ubatch", 256): (1.3, 1.0),
        }
    )
    uses, _, _ = run_search(ScriptedBench(speed_model))
    expected = {"repack": False, "n_threads": 4, "n_threads_batch": 4}
    assert uses["chat"].tuning.overrides == expected
    assert uses["ask"].tuning.overrides == {**expected, "n_ubatch": 256}
    for name in SINGLE_USES:
        assert uses[name].gain == pytest.approx(true_gain(speed_model, uses[name], name))


def test_search_drops_settings_that_cannot_be_loaded() -> None:
    speed_model = SpeedModel(single={("repack", False): (2.0, 2.0), ("n_threads", 4): (1.0, 1.3)})
    problem = "ended with signal 9"
    bench = ScriptedBench(speed_model, refusal=lambda tuning: problem if is_not_repacked(tuning) else None)
    uses, search, _ = run_search(bench)
    assert [each.dropped for each in candidates_with(search, repack=False) if not each.is_batch] == [problem]
    assert {uses[name].tuning.repack for name in SINGLE_USES} == {None}
    assert uses["chat"].tuning.n_threads == 4


def test_search_drops_settings_that_fail_during_confirmation() -> None:
    events: list[StageEvent] = []

    def refusal(tuning: Tuning) -> str | None:
        is_full = events and "again, against" in events[-1].stage
        return "needs 9.9 GB; 1.0 GB is free" if is_full and is_not_repacked(tuning) else None

    speed_model = SpeedModel(single={("repack", False): (2.0, 2.0)}, batch={("slots", 32): (1.0, 2.0)})
    bench = ScriptedBench(speed_model, refusal=refusal)
    space = SPACE._replace(batch=Tuning(repack=True, slots=64))
    uses, search, _ = run_search(bench, space=space, events=events)
    assert overrides_by_use(uses) == {"batch": {"slots": 32}}
    [dropped] = [each for each in search.candidates if each.tuning == Tuning(repack=False)]
    assert dropped.dropped == "needs 9.9 GB; 1.0 GB is free"


def test_search_reports_a_model_that_cannot_be_loaded() -> None:
    with pytest.raises(EngineError, match=r"^needs 99\.0 GB; "):
        run_search(ScriptedBench(refusal=lambda _: "needs 99.0 GB; 8.0 GB is free"))


@pytest.mark.parametrize(("speedup", "pairs"), [(0.5, 1), (1.0, 2)], ids=["a clear loss is measured once", "no gain"])
def test_search_tries_settings_on_each_leader(speedup: float, pairs: int) -> None:
    bench = ScriptedBench(SpeedModel({**NOT_REPACKED, ("n_ubatch", 64): (speedup, 1.0)}, baseline=SLOW_PREFILL))
    _, search, _ = run_search(bench)
    assert search.best["chat"].tuning.repack is not search.best["ask"].tuning.repack
    tried = [candidate.tuning.repack for candidate in candidates_with(search, n_ubatch=64)]
    assert (tried, [job.kind for job in bench.jobs_with(n_ubatch=64)]) == ([True, False], ["prefill"] * 2 * pairs)


def test_search_skips_settings_that_affect_little() -> None:
    bench = ScriptedBench(SpeedModel(baseline=Speeds(2.0, 30_000.0, 8.0)))  # prefill takes almost no time
    _, search, _ = run_search(bench)
    assert candidates_with(search, n_ubatch=256) == []
    assert {job.kind for job in bench.jobs_with(repack=False) if job.sequences == 1} == {"decode"}


def test_search_tries_only_settings_that_the_user_and_the_machine_leave_open() -> None:
    speed_model = SpeedModel(single={("gpu_layers", "16"): (2.0, 2.0)})
    _, search, _ = run_search(ScriptedBench(speed_model), space=SPACE._replace(threads=(), no_flash=()))
    tried = {setting for each in search.candidates for setting in each.tuning.overrides}
    assert tried == {"repack", "slots", "n_ubatch"}
    uses, search, _ = run_search(ScriptedBench(speed_model, devices=(GPU,)))
    assert {each.tuning.gpu_layers for each in search.candidates} == {None, "0", "16"}
    assert not candidates_with(search, flash_attention=False)
    assert uses["chat"].tuning == Tuning(gpu_layers="16")


@pytest.mark.parametrize(("slots", "tried"), [(64, [64, 16, 32]), (32, [32, 16]), (8, [8])])
def test_search_tries_only_sequences_that_fit_in_memory(slots: int, tried: list[int]) -> None:
    batch = replace(BATCH_BASELINE, slots=slots)
    _, search, _ = run_search(ScriptedBench(), space=SPACE._replace(batch=batch))
    assert list(dict.fromkeys(each.tuning.slots for each in search.candidates if each.is_batch)) == tried


def test_search_runs_essential_stages_after_the_deadline() -> None:
    speed_model = SpeedModel(single={**NOT_REPACKED, ("n_ubatch", 64): (9.0, 1.0)}, batch={("slots", 32): (1.0, 9.0)})
    uses, search, events = run_search(ScriptedBench(speed_model), search_s=0.0)
    measured = [(each.tuning, each.is_batch) for each in search.candidates if each.speeds]
    assert measured == [(BASELINE, False), (replace(BASELINE, repack=False), False), (BATCH_BASELINE, True)]
    assert {each.dropped for each in search.candidates if not each.speeds} == {"would take too long"}
    assert overrides_by_use(uses) == {"ask": {"repack": False}}
    assert [event.done for event in events[1:]] == list(range(events[-1].total))
    assert [event.stage for event in events[-3:]] == [f"{use.name} again, against defaults" for use in USES]


def test_search_takes_little_longer_than_its_budget() -> None:
    bench = ScriptedBench(SpeedModel(single=NOT_REPACKED))
    run_search(bench, SEARCH_S)
    assert bench.now < 140, "about two minutes for a 7B, including the confirmation"


def test_search_finds_almost_nothing_in_pure_noise() -> None:
    uses = [run_search(ScriptedBench(noise=0.02, random=Random(seed)))[0] for seed in range(50)]
    assert sum(len(overrides_by_use(each)) for each in uses) <= 4


@pytest.mark.parametrize(
    ("default", "most", "others"),
    [
        *((1, 1, ()), (1, 2, (2,)), (2, 2, (1,)), (2, 4, (1, 4)), (4, 8, (2, 3, 8)), (8, 8, (4, 7))),
        *((6, 14, (3, 5, 14)), (64, 128, (32, 63, 128))),
    ],
)
def test_thread_counts_to_try(default: int, most: int, others: tuple[int, ...]) -> None:
    assert thread_counts_to_try(default, most) == others
