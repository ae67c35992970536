"""The search for the fastest settings, on scripted speeds, and the text it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from scripted_bench import BATCH_SPEEDS, SINGLE_SPEEDS, ScriptedBench, SpeedModel
from tiny_models import write_chatml

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.bench import BenchJob
from cerebrum_cli.engine.memory import Device
from cerebrum_cli.engine.model_options import Tuning
from cerebrum_cli.model.profiles import Speeds, TunedUse, UseName
from cerebrum_cli.models.model import InstalledModel
from cerebrum_cli.tune.candidates import USES, Candidate, SearchSpace, describe, thread_counts_to_try
from cerebrum_cli.tune.search import SEARCH_S, Search
from cerebrum_cli.tune.tune import STEPS_S, tune_model

BASELINE, BATCH_BASELINE = Tuning(repack=True), Tuning(repack=False, slots=32)
SPACE = SearchSpace(BASELINE, BASELINE, BATCH_BASELINE, threads=(1, 4), slots=64, layers=32)
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
        SpeedModel(batch={("repack", True): (1.2, 1.3), ("slots", 64): (1.0, 1.4), ("slots", 16): (1.0, 0.8)}),
        {"batch": {"repack": True, "slots": 64}},
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


@pytest.mark.parametrize(
    ("prefill", "decode", "load_s", "is_chosen"),
    [
        (1.0, 0.83, 0.2, True),  # 256 tokens take 1.13 times as long
        (1.0, 0.7, 0.2, False),  # 1.33 times
        (0.5, 1.0, 0.2, False),  # only after a long prompt: 1.6 times
        (1.0, 1.1, 2.1, True),  # the first token takes about as long, so the whole answer decides
        (1.0, 0.9, 2.0, False),
        (1.0, 1.4, 9.0, False),  # 1.25 times as fast in the end, after a much later first token
        (1.0, 1.9, 9.0, True),  # without it, 256 tokens would take 1.43 times as long
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
    threads = SpeedModel(
        single={("repack", False): (1.5, 0.7), ("n_threads", 4): (1.0, 1.3), ("n_threads_batch", 4): (1.3, 1.0)},
        load_s={True: 4.0, False: 0.2},
    )
    for use in run_search(ScriptedBench(threads), space=space)[0].values():  # tried with both defaults
        assert use.tuning.overrides == {} or use.tuning.overrides == {"n_threads": 4, "n_threads_batch": 4}


def test_search_times_three_loads_and_takes_the_median() -> None:
    class VaryingBench(ScriptedBench):
        def _load(self, tuning: Tuning) -> float:
            if tuning.repack is False and tuning not in self.loaded:
                self.speed_model = SpeedModel(load_s={False: next(times)})
            return ScriptedBench._load(self, tuning)

    times = iter([9.0, 0.3, 0.4, *[0.5] * 99])
    uses, search, _ = run_search(VaryingBench(), space=SPACE._replace(ask=Tuning(repack=False)))
    assert search.loads == {(True, None): [2.0, 2.0, 2.0], (False, None): [9.0, 0.3, 0.4]}
    assert uses["ask"].speeds.load_s == 0.4


@pytest.mark.parametrize(("speed", "depth", "batch_depth"), [(5.0, 16, 16), (300.0, 600, 128), (5000.0, 2048, 128)])
def test_search_measures_decoding_behind_a_context(speed: float, depth: int, batch_depth: int) -> None:
    speeds = Speeds(0.1, speed, 8.0)
    bench = ScriptedBench(SpeedModel(baseline=speeds, batch_baseline=speeds))
    run_search(bench)
    decoded = {(tuning.slots is not None, job.depth) for tuning, job in bench.jobs if job.kind == "decode"}
    assert decoded == {(False, depth), (True, batch_depth)}


def test_search_ignores_gains_below_the_minimum() -> None:
    uses, search, _ = run_search(ScriptedBench(SpeedModel(single={("repack", False): (1.04, 1.04)})))
    assert search.best["chat"].tuning.repack is False
    assert search.best["chat"].dropped == "less than 5% faster when measured again"
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

    speed_model = SpeedModel(single={("repack", False): (2.0, 2.0)}, batch={("slots", 64): (1.0, 2.0)})
    bench = ScriptedBench(speed_model, refusal=refusal)
    space = SPACE._replace(batch=Tuning(repack=True, slots=32))
    uses, search, _ = run_search(bench, space=space, events=events)
    assert overrides_by_use(uses) == {"batch": {"slots": 64}}
    [dropped] = [each for each in search.candidates if each.tuning == Tuning(repack=False)]
    assert dropped.dropped == "needs 9.9 GB; 1.0 GB is free"


def test_search_reports_a_model_that_cannot_be_loaded() -> None:
    bench = ScriptedBench(refusal=lambda _: "needs 99.0 GB; 8.0 GB is free")
    with pytest.raises(EngineError, match=r"^cannot measure this model: needs 99\.0 GB; "):
        run_search(bench)


@pytest.mark.parametrize(
    ("speedup", "leaders", "kinds"),
    [(0.5, [True], ["prefill"]), (1.0, [True], ["prefill", "prefill"]), (1.1, [True, False], None)],
    ids=["a clear loss is measured once", "no gain on the first leader", "a small gain is tried on each"],
)
def test_search_tries_settings_on_other_leaders_after_a_gain(
    speedup: float, leaders: list[bool], kinds: list[str] | None
) -> None:
    bench = ScriptedBench(SpeedModel({**NOT_REPACKED, ("n_ubatch", 64): (speedup, 1.0)}, baseline=SLOW_PREFILL))
    _, search, _ = run_search(bench)
    assert search.best["chat"].tuning.repack is not search.best["ask"].tuning.repack
    tried = [candidate.tuning for candidate in candidates_with(search, n_ubatch=64)]
    assert [tuning.repack for tuning in tried if len(tuning.overrides) == 2] == leaders
    assert kinds is None or (len(tried), [job.kind for job in bench.jobs_with(n_ubatch=64)]) == (1, kinds)


def test_search_skips_settings_that_affect_little() -> None:
    speed_model = SpeedModel(baseline=Speeds(2.0, 30_000.0, 8.0))  # prefill takes almost no time
    bench = ScriptedBench(speed_model)
    _, search, _ = run_search(bench)
    assert candidates_with(search, n_ubatch=256) == []
    assert search.untried["n_ubatch 256"] == "affects less than 10% of the time"
    [candidate] = [each for each in candidates_with(search, repack=False) if not each.is_batch]
    assert candidate.measured_kinds == {"decode"}


def test_search_tries_gpu_layers_only_with_a_gpu_and_threads_that_the_user_leaves_open() -> None:
    speed_model = SpeedModel(single={("gpu_layers", "16"): (2.0, 2.0)})
    _, search, _ = run_search(ScriptedBench(speed_model), space=SPACE._replace(threads=()))
    tried = [each.tuning for each in search.candidates]
    assert [each for each in tried if each.gpu_layers or each.n_threads or each.n_threads_batch] == []
    uses, search, _ = run_search(ScriptedBench(speed_model, devices=(GPU,)))
    assert {each.tuning.gpu_layers for each in search.candidates} == {None, "0", "16"}
    assert uses["chat"].tuning == Tuning(gpu_layers="16")


@pytest.mark.parametrize(("slots", "tried"), [(64, [32, 16, 64]), (63, [32, 16]), (8, [8])])
def test_search_tries_only_sequences_that_fit_in_memory(slots: int, tried: list[int]) -> None:
    space = SPACE._replace(slots=slots, batch=replace(BATCH_BASELINE, slots=min(32, slots)))
    _, search, _ = run_search(ScriptedBench(), space=space)
    assert list(dict.fromkeys(each.tuning.slots for each in search.candidates if each.is_batch)) == tried


def test_search_runs_essential_stages_after_the_deadline() -> None:
    speed_model = SpeedModel(single={**NOT_REPACKED, ("n_ubatch", 64): (9.0, 1.0)}, batch={("slots", 64): (1.0, 9.0)})
    uses, search, events = run_search(ScriptedBench(speed_model), search_s=0.0)
    measured = [(each.tuning, each.is_batch) for each in search.candidates if each.speeds]
    assert measured == [(BASELINE, False), (replace(BASELINE, repack=False), False), (BATCH_BASELINE, True)]
    skipped = {each.dropped for each in search.candidates if not each.speeds}
    assert skipped == {"would take too long"}
    assert overrides_by_use(uses) == {"ask": {"repack": False}}
    assert [event.done for event in events[1:]] == list(range(events[-1].total))
    assert [event.stage for event in events[-3:]] == [f"{use.name} again, against defaults" for use in USES]


def test_search_takes_little_longer_than_its_budget() -> None:
    bench = ScriptedBench(SpeedModel(single=NOT_REPACKED))
    run_search(bench, SEARCH_S)
    assert bench.now < 140, "about two minutes for a 7B, including the confirmation"


def test_tune_measures_drafts_within_the_budget(tmp_path: Path) -> None:
    model = InstalledModel("tiny", (write_chatml(tmp_path / "tiny.gguf"),))
    taken = []
    for steps_s in (0.0, STEPS_S):
        bench = ScriptedBench(row_cost=0.5)
        list(tune_model(bench, model, Settings(), None, lambda _: ("sha", "here", "b1"), bench.clock, steps_s=steps_s))
        assert bench.stepped
        taken.append(bench.now)
    assert taken[1] < taken[0] + STEPS_S / 2


SMALL, SMALL_BATCH = Speeds(0.07, 40_000.0, 4_500.0), Speeds(0.07, 5_000.0, 10_000.0)  # dominated by load time
SPREAD = (0.6, 0.8, 0.9, 0.96, 1.0, 1.0, 1.04, 1.1, 1.3)
VARIED = (
    *(("repack", value) for value in (False, True)),
    *((name, value) for name in ("n_threads", "n_threads_batch") for value in (1, 4)),
    *(("n_ubatch", value) for value in (64, 256, 512)),
    *(("slots", value) for value in (16, 64)),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search_s", "baseline", "batch_baseline"),
    [(1e9, SINGLE_SPEEDS, BATCH_SPEEDS), (SEARCH_S, SMALL, SMALL_BATCH)],
    ids=["all", "small"],
)
def test_search_never_chooses_much_slower_settings_despite_noise(
    search_s: float, baseline: Speeds, batch_baseline: Speeds
) -> None:
    chosen = 0
    for seed in range(150):
        random = Random(seed)
        single = {key: (random.choice(SPREAD), random.choice(SPREAD)) for key in VARIED if key != ("repack", True)}
        batch = {key: (random.choice(SPREAD), random.choice(SPREAD)) for key in VARIED if key != ("repack", False)}
        speed_model = SpeedModel(single, batch, baseline=baseline, batch_baseline=batch_baseline)
        uses, _, _ = run_search(ScriptedBench(speed_model, noise=0.04, random=random), search_s)
        for name, tuned in uses.items():
            chosen += bool(tuned.tuning.overrides)
            if name == "ask":  # noise may cross the limits of what the first token or the whole answer decides
                best = speed_model(replace(BASELINE, **tuned.tuning.overrides))
                first, whole = (baseline.seconds(64, reply) / best.seconds(64, reply) for reply in (0, 256))
                assert max(first, whole) >= 0.97 and whole >= 0.77, (seed, tuned.tuning.overrides)
            else:
                assert true_gain(speed_model, tuned, name) >= 0.97, (seed, name, tuned.tuning.overrides)
            assert tuned.gain >= 1.05 or not tuned.tuning.overrides
    assert chosen > 50, "otherwise the test would prove nothing"


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


def test_use_seconds_are_load_prefill_and_decode() -> None:
    chat, ask, batch = USES
    speeds = Speeds(3.0, 32.0, 16.0)
    assert [speeds.seconds(use.prompt_tokens, use.reply_tokens) for use in USES] == [3 + 16 + 96, 3 + 2 + 16, 771]
    assert chat.shares(speeds) == {"prefill": 16 / 115, "decode": 96 / 115}
    assert ask.shares(speeds) == {"prefill": 2 / 5, "decode": 16 / 21}
    assert [use.is_batch for use in USES] == [False, False, True]
    assert sum(batch.shares(speeds).values()) == pytest.approx(1 - 3 / 771)


@pytest.mark.parametrize(
    ("tuning", "text"),
    [
        (Tuning(), "defaults"),
        (Tuning(repack=True, n_ubatch=64), "repacked, n_ubatch 64"),
        (Tuning(n_threads=1, n_threads_batch=1), "1 thread"),
        (Tuning(n_threads=6, n_threads_batch=6), "6 threads"),
        (Tuning(n_threads=1), "1 thread to decode"),
        (Tuning(n_threads_batch=8), "8 threads to prefill"),
        (Tuning(gpu_layers="0"), "0 layers offloaded"),
        (
            Tuning(False, 4, 6, 64, "8", 16),
            "not repacked, 8 layers offloaded, 4 threads to decode, 6 threads to prefill, n_ubatch 64, 16 sequences",
        ),
    ],
)
def test_description_of_a_tuning_omits_defaults(tuning: Tuning, text: str) -> None:
    assert describe(tuning) == text


class BusyBench(ScriptedBench):
    """A bench on a machine where other programs always use the CPU."""

    def speed(self, tuning: Tuning, job: BenchJob) -> float:
        self.disturbed_jobs += 1
        return ScriptedBench.speed(self, tuning, job)


def test_search_rejects_thread_counts_on_a_busy_machine() -> None:
    speed_model = SpeedModel(single={("n_threads", 1): (4.0, 4.0), ("n_threads_batch", 1): (4.0, 4.0)})
    uses, search, _ = run_search(BusyBench(speed_model))
    assert all(uses[name].tuning.n_threads is None for name in uses)
    assert "inconclusive: the CPU was busy" in {each.dropped for each in search.candidates}
