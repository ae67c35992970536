"""The search for the fastest way of each use, on machines whose speeds are scripted; and what people read of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from random import Random
from typing import Any

import pytest
from scripted_bench import ALONE, MANY, Cost, ScriptedBench

from cerebrum_cli.application.inference.profiles import Speeds, TunedUse, UseName
from cerebrum_cli.application.tuning.candidates import (
    NORMAL,
    QUICK,
    THOROUGH,
    USES,
    Budget,
    Candidate,
    SearchSpace,
    thread_counts_to_try,
)
from cerebrum_cli.application.tuning.search import Search
from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.engine.bench.protocol import Job
from cerebrum_cli.engine.plan import Device, Tuning
from cerebrum_cli.terminal.tuning_report import candidate_lines, tuning_text

USUAL, USUAL_MANY = Tuning(repack=True), Tuning(repack=False, slots=32)
MACHINE = SearchSpace(USUAL, USUAL_MANY, threads=(1, 4), slots=64, layers=32)
GPU = Device("CUDA0", "NVIDIA H200", 140_000_000_000, 150_000_000_000)
PLAIN = {("repack", False): (1.5, 0.7)}
PATIENT = NORMAL._replace(search_s=1e9)


def searched(
    bench: ScriptedBench,
    effort: Budget = PATIENT,
    machine: SearchSpace = MACHINE,
    told: list[StageEvent] | None = None,
) -> tuple[dict[UseName, TunedUse], Search, list[StageEvent]]:
    """Return what a search finds, the search, and what it told on the way."""
    search = Search(bench, machine, effort, clock=bench.clock)
    running, events = search.run(), [] if told is None else told
    while True:
        try:
            events.append(next(running))
        except StopIteration as stopped:
            found: dict[UseName, TunedUse] = stopped.value
            return found, search, events


def settings(found: dict[UseName, TunedUse]) -> dict[str, dict[str, Any]]:
    """Return what is not as usual, by use; uses that are as usual are left out."""
    return {name: tuned.tuning.overrides for name, tuned in found.items() if tuned.tuning.overrides}


def arms(search: Search, **wanted: Any) -> list[Candidate]:
    """Return the ways that were tried with these settings."""
    return [arm for arm in search.candidates if wanted.items() <= arm.tuning.overrides.items()]


def is_plain(tuning: Tuning) -> bool:
    return tuning.repack is False and not tuning.slots


def true_gain(cost: Cost, found: TunedUse, name: UseName) -> float:
    """Return how many times as fast a use truly is as it was found."""
    use = next(use for use in USES if use.name == name)
    usual = USUAL_MANY if use.is_batch else USUAL
    return use.seconds(cost(usual)) / use.seconds(cost(Tuning(**{**usual.overrides, **found.tuning.overrides})))


def test_weights_that_read_faster_and_say_slower_are_for_long_questions_alone() -> None:
    cost = Cost(alone=PLAIN)
    found, _, _ = searched(ScriptedBench(cost))
    assert settings(found) == {"ask-long": {"repack": False}}
    gain = (2 + 2048 / 30 + 128 / 8) / (2 + 2048 / 45 + 128 / 5.6)
    assert found["ask-long"].gain == pytest.approx(gain)
    assert found["ask-long"].gain == pytest.approx(true_gain(cost, found["ask-long"], "ask-long"))
    assert asdict(found["ask-long"].speeds) == pytest.approx(asdict(cost(Tuning(repack=False))))
    assert (found["ask-long"].baseline, found["ask-long"].agreement) == (ALONE, 1.0)
    assert found["chat"] == TunedUse(Tuning(), ALONE, ALONE)


def test_where_nothing_is_faster_all_stays_as_usual() -> None:
    found, _, _ = searched(ScriptedBench())
    assert found == {
        "chat": TunedUse(Tuning(), ALONE, ALONE),
        "ask": TunedUse(Tuning(), ALONE, ALONE),
        "ask-long": TunedUse(Tuning(), ALONE, ALONE),
        "batch": TunedUse(Tuning(), MANY, MANY),
    }


def test_a_gain_that_another_program_could_have_made_is_none() -> None:
    found, search, _ = searched(ScriptedBench(Cost(alone={("flash_attention", False): (1.04, 1.04)})))
    assert search.best["chat"].tuning.flash_attention is False
    assert settings(found) == {}


def test_a_model_that_loads_faster_is_better_for_one_short_answer() -> None:
    cost = Cost(alone={("repack", False): (1.0, 0.9)}, loads={True: 12.0, False: 1.0})
    found, _, _ = searched(ScriptedBench(cost))
    assert found["ask"].tuning == Tuning(repack=False)
    assert found["ask"].speeds.load_s == 1.0
    assert found["chat"].tuning == Tuning()


def test_settings_are_found_on_top_of_one_another() -> None:
    cost = Cost(
        alone={
            ("repack", False): (1.3, 1.3),
            ("n_threads", 4): (1.0, 1.2),
            ("n_threads_batch", 4): (1.2, 1.0),
            ("n_ubatch", 256): (1.1, 1.0),
            ("flash_attention", False): (1.1, 1.1),
        }
    )
    found, _, _ = searched(ScriptedBench(cost))
    alike = {"repack": False, "n_threads": 4, "n_threads_batch": 4, "flash_attention": False}
    assert found["ask"].tuning.overrides == alike
    del alike["flash_attention"]  # of which so few tokens tell nothing where there are many
    assert found["ask-long"].tuning.overrides == {**alike, "n_ubatch": 256}
    for name in ("chat", "ask", "ask-long"):
        assert found[name].gain == pytest.approx(true_gain(cost, found[name], name))


def test_a_way_that_chooses_other_tokens_is_dropped_and_the_next_best_taken() -> None:
    cost = Cost(
        alone={("cache_type", "q8_0"): (1.0, 2.0), ("n_threads", 4): (1.0, 1.5), ("n_threads_batch", 4): (1, 1)}
    )
    bench = ScriptedBench(cost, agreement=lambda tuning: 0.9699 if tuning.cache_type else 0.9701)
    found, search, _ = searched(bench)
    assert {found[name].tuning.n_threads for name in ("chat", "ask")} == {4}
    assert {found[name].tuning.cache_type for name in ("chat", "ask", "ask-long")} == {None}
    assert found["chat"].agreement == 1.0, "who computes what is no matter"
    [dropped] = [arm for arm in arms(search, cache_type="q8_0", n_threads=4) if arm.agreement is not None]
    assert dropped.dropped == "changes the output: same top-1 96.99%"
    assert len(bench.compared) == len({*bench.compared}), "a way is compared once, whatever it is best for"


def test_where_all_that_is_faster_chooses_other_tokens_all_stays_as_usual() -> None:
    cost = Cost(alone={("repack", False): (2.0, 2.0)}, many={("repack", True): (2.0, 2.0)})
    found, search, _ = searched(ScriptedBench(cost, agreement=lambda tuning: 0.5))
    assert settings(found) == {}
    assert all(arm.dropped for arm in search.candidates if arm.agreement is not None)


def test_ways_that_cannot_be_opened_are_told_and_left_out() -> None:
    cost = Cost(alone={("repack", False): (2.0, 2.0), ("n_threads", 4): (1.0, 1.3)})
    bench = ScriptedBench(cost, refused=lambda tuning: "ended with signal 9" if is_plain(tuning) else None)
    found, search, _ = searched(bench)
    assert [arm.dropped for arm in arms(search, repack=False) if not arm.is_batch] == ["ended with signal 9"]
    assert {found[name].tuning.repack for name in ("chat", "ask", "ask-long")} == {None}
    assert found["chat"].tuning.n_threads == 4


@pytest.mark.parametrize("when", ["compared", "measured"])
def test_a_way_that_can_no_longer_be_opened_when_it_is_confirmed_costs_only_itself(when: str) -> None:
    told: list[StageEvent] = []

    def refused(tuning: Tuning) -> str | None:
        gone = bench.compared if when == "measured" else told and "again, against" in told[-1].stage
        return "needs 9.9 GB of memory, but only 1.0 GB is free" if gone and is_plain(tuning) else None

    cost = Cost(alone={("repack", False): (2.0, 2.0)}, many={("slots", 64): (1.0, 2.0)})
    bench = ScriptedBench(cost, refused=refused)
    machine = MACHINE._replace(batch_baseline=Tuning(repack=True, slots=32))
    found, search, _ = searched(bench, machine=machine, told=told)
    assert settings(found) == {"batch": {"slots": 64}}
    [plain] = [arm for arm in search.candidates if arm.tuning == Tuning(repack=False)]
    assert plain.dropped == "needs 9.9 GB of memory, but only 1.0 GB is free"


def test_a_model_that_cannot_be_opened_at_all_is_an_error_that_says_why() -> None:
    bench = ScriptedBench(refused=lambda _: "needs 99.0 GB of memory, but only 8.0 GB is free")
    with pytest.raises(EngineError, match=r"^this model cannot be measured here: needs 99\.0 GB of memory"):
        searched(bench)


def test_what_loses_clearly_is_measured_once_and_not_tried_on_top_of_another() -> None:
    cost = Cost(alone={**PLAIN, ("flash_attention", False): (0.5, 0.5)})
    bench = ScriptedBench(cost)
    _, search, _ = searched(bench)
    assert search.best["chat"] is not search.best["ask-long"]
    assert len(arms(search, flash_attention=False)) == 1
    assert [job.kind for job in bench.measured(flash_attention=False)] == ["prefill", "decode"]


def test_what_gains_nothing_on_top_of_one_leader_is_not_tried_on_top_of_another() -> None:
    bench = ScriptedBench(Cost(alone=PLAIN))
    _, search, _ = searched(bench)
    assert [arm.tuning.repack for arm in arms(search, flash_attention=False)] == [True]
    assert [job.kind for job in bench.measured(flash_attention=False, repack=True)] == 2 * ["prefill"] + 2 * ["decode"]


def test_what_gains_a_little_is_measured_in_pairs_on_top_of_each_leader() -> None:
    bench = ScriptedBench(Cost(alone={**PLAIN, ("flash_attention", False): (1.1, 1.1)}))
    _, search, _ = searched(bench)
    tried = [arm for arm in arms(search, flash_attention=False) if len(arm.tuning.overrides) == 2]
    assert [arm.tuning.repack for arm in tried] == [True, False]


def test_what_can_change_little_is_not_measured() -> None:
    cost = Cost(usual=Speeds(2.0, 30_000.0, 8.0))  # reading is no time at all
    bench = ScriptedBench(cost)
    _, search, _ = searched(bench)
    assert arms(search, n_ubatch=256) == []
    assert {job.kind for job in bench.measured(flash_attention=False)} == {"decode"}


def test_numbers_of_threads_for_reading_and_saying_are_combined() -> None:
    cost = Cost(
        alone={
            ("n_threads_batch", 4): (1.4, 1.0),
            ("n_threads", 4): (1.0, 0.6),
            ("n_threads_batch", 1): (0.5, 1.0),
            ("n_threads", 1): (1.0, 1.3),
        }
    )
    found, _, _ = searched(ScriptedBench(cost))
    assert found["ask-long"].tuning == Tuning(n_threads=1, n_threads_batch=4)
    assert found["chat"].tuning == Tuning(n_threads=1, n_threads_batch=4)
    assert found["ask-long"].gain == pytest.approx(true_gain(cost, found["ask-long"], "ask-long"))


def test_threads_the_user_has_set_are_not_tried() -> None:
    _, search, _ = searched(ScriptedBench(), machine=MACHINE._replace(threads=()))
    assert [arm for arm in search.candidates if arm.tuning.n_threads or arm.tuning.n_threads_batch] == []


def test_layers_are_only_tried_where_there_is_something_to_offload_them_to() -> None:
    cost = Cost(alone={("gpu_layers", "16"): (2.0, 2.0)})
    _, search, _ = searched(ScriptedBench(cost))
    assert [arm for arm in search.candidates if arm.tuning.gpu_layers is not None] == []
    found, search, _ = searched(ScriptedBench(cost, devices=(GPU,)))
    assert {arm.tuning.gpu_layers for arm in search.candidates} == {None, "0", "16"}
    assert found["chat"].tuning == Tuning(gpu_layers="16")


@pytest.mark.parametrize(
    ("effort", "room", "tried"),
    [
        (NORMAL, 64, [32, 16, 64]),
        (NORMAL, 63, [32, 16]),
        (NORMAL, 8, [8]),
        (QUICK, 64, [32, 16]),
        (THOROUGH, 50, [32, 4, 8, 16, 24, 48]),
    ],
)
def test_no_more_sequences_are_tried_than_memory_holds(effort: Budget, room: int, tried: list[int]) -> None:
    machine = MACHINE._replace(slots=room, batch_baseline=replace(USUAL_MANY, slots=min(32, room)))
    _, search, _ = searched(ScriptedBench(), effort, machine)
    assert list(dict.fromkeys(arm.tuning.slots for arm in search.candidates if arm.is_batch)) == tried


def test_a_batch_has_its_own_weights_and_as_many_sequences_as_are_fastest() -> None:
    cost = Cost(many={("repack", True): (1.2, 1.3), ("slots", 64): (1.0, 1.4), ("slots", 16): (1.0, 0.8)})
    found, _, _ = searched(ScriptedBench(cost))
    assert settings(found) == {"batch": {"repack": True, "slots": 64}}
    assert found["batch"].gain == pytest.approx(true_gain(cost, found["batch"], "batch"))
    assert found["batch"].baseline == MANY


def test_the_budget_ends_the_search_but_what_is_essential_is_always_measured() -> None:
    cost = Cost(alone={**PLAIN, ("flash_attention", False): (9.0, 9.0)}, many={("slots", 64): (1.0, 9.0)})
    found, search, events = searched(ScriptedBench(cost), NORMAL._replace(search_s=0.0))
    measured = [(arm.tuning, arm.is_batch) for arm in search.candidates if arm.speeds]
    assert measured == [(USUAL, False), (replace(USUAL, repack=False), False), (USUAL_MANY, True)]
    late = {arm.dropped for arm in search.candidates if not arm.speeds}
    assert late == {"skipped: would take too long"}
    assert settings(found) == {"ask-long": {"repack": False}}
    assert [event.done for event in events[1:]] == list(range(events[-1].total))


def test_a_search_takes_little_longer_than_its_budget() -> None:
    cost = Cost(alone=PLAIN)
    for effort, most in ((QUICK, 55), (NORMAL, 140)):  # with what is measured once more
        bench = ScriptedBench(cost)
        searched(bench, effort)
        assert bench.now < most, "about two minutes for a 7B"


def test_the_stages_count_up_to_their_number_and_never_beyond() -> None:
    for effort in (QUICK, NORMAL, THOROUGH):
        _, _, events = searched(ScriptedBench(Cost(alone=PLAIN), devices=(GPU,)), effort)
        assert events[0] == StageEvent("defaults", 0, 1)
        total = events[1].total
        assert [(event.done, event.total) for event in events[1:]] == [(done, total) for done in range(total)]
        assert [event.stage for event in events[-4:]] == [f"{use.name} again, against defaults" for use in USES]


def test_the_more_effort_the_more_is_tried() -> None:
    tried = []
    for effort in (QUICK, NORMAL, THOROUGH):
        bench = ScriptedBench(Cost(alone=PLAIN, usual=Speeds(0.5, 3000.0, 800.0), usual_many=Speeds(0.5, 4500.0, 4e3)))
        _, search, _ = searched(bench, effort)
        assert all(arm.speeds for arm in search.candidates), "nothing ran out of time"
        tried.append((len(search.candidates), len(bench.jobs), bench.now))
    assert tried[0] < tried[1] < tried[2]
    assert sorted(jobs for _, jobs, _ in tried) == [jobs for _, jobs, _ in tried]


SMALL, SMALL_MANY = Speeds(0.07, 40_000.0, 4_500.0), Speeds(0.07, 5_000.0, 10_000.0)  # mostly it is loaded
SPREAD = (0.6, 0.8, 0.9, 0.96, 1.0, 1.0, 1.04, 1.1, 1.3)
VARIED = (
    *(("repack", value) for value in (False, True)),
    *((name, value) for name in ("n_threads", "n_threads_batch") for value in (1, 4)),
    *(("n_ubatch", value) for value in (64, 256, 512)),
    ("flash_attention", False),
    ("cache_type", "q8_0"),
    *(("slots", value) for value in (16, 64)),
)


@pytest.mark.parametrize(
    ("effort", "usual", "usual_many"),
    [(QUICK, ALONE, MANY), (PATIENT, ALONE, MANY), (QUICK, SMALL, SMALL_MANY), (NORMAL, SMALL, SMALL_MANY)],
    ids=["quick", "all", "quick, small", "small"],
)
def test_noise_makes_no_use_slower_than_usual_by_more_than_itself(
    effort: Budget, usual: Speeds, usual_many: Speeds
) -> None:
    chosen = 0
    for seed in range(150):
        random = Random(seed)
        alone = {key: (random.choice(SPREAD), random.choice(SPREAD)) for key in VARIED if key != ("repack", True)}
        many = {key: (random.choice(SPREAD), random.choice(SPREAD)) for key in VARIED if key != ("repack", False)}
        cost = Cost(alone, many, usual=usual, usual_many=usual_many)
        found, _, _ = searched(ScriptedBench(cost, noise=0.04, random=random), effort)
        for name, tuned in found.items():
            chosen += bool(tuned.tuning.overrides)
            assert true_gain(cost, tuned, name) >= 0.97, (seed, name, tuned.tuning.overrides)
            assert tuned.gain >= 1.05 or not tuned.tuning.overrides
    assert chosen > 150, "it would be easy to choose nothing"


def test_where_all_ways_are_alike_noise_finds_next_to_nothing() -> None:
    found = [searched(ScriptedBench(noise=0.02, random=Random(seed)))[0] for seed in range(50)]
    assert sum(len(settings(each)) for each in found) <= 4


@pytest.mark.parametrize(
    ("usual", "usable", "others"),
    [
        (1, 1, ()),
        (1, 2, (2,)),
        (2, 2, (1,)),
        (2, 4, (1, 4)),
        (4, 8, (2, 3, 8)),
        (8, 8, (4, 7)),
        (8, 6, (4, 6, 7)),
        (64, 128, (32, 63, 128)),
    ],
)
def test_all_that_can_run_half_as_many_and_one_less_are_tried_beside_the_usual_threads(
    usual: int, usable: int, others: tuple[int, ...]
) -> None:
    assert thread_counts_to_try(usual, usable) == others


def test_the_seconds_of_a_use_are_loading_reading_and_saying() -> None:
    chat, ask, long, batch = USES
    speeds = Speeds(3.0, 32.0, 16.0)
    assert [use.seconds(speeds) for use in USES] == [3 + 16 + 96, 3 + 2 + 8, 3 + 64 + 8, 3 + 256 + 512]
    assert chat.shares(speeds) == {"prefill": 16 / 115, "decode": 96 / 115}
    assert [use.is_batch for use in USES] == [False, False, False, True]
    assert long.shares(speeds)["prefill"] > ask.shares(speeds)["prefill"]
    assert sum(batch.shares(speeds).values()) == pytest.approx(1 - 3 / 771)


@pytest.mark.parametrize(
    ("tuning", "text"),
    [
        (Tuning(), "defaults"),
        (Tuning(repack=True), "repacked"),
        (Tuning(repack=False), "not repacked"),
        (Tuning(n_threads=1, n_threads_batch=1), "1 thread"),
        (Tuning(n_threads=6, n_threads_batch=6), "6 threads"),
        (Tuning(n_threads=4, n_threads_batch=6), "4 threads to decode, 6 threads to prefill"),
        (Tuning(n_threads=1), "1 thread to decode"),
        (Tuning(n_threads_batch=8), "8 threads to prefill"),
        (Tuning(gpu_layers="0"), "0 layers offloaded"),
        (Tuning(gpu_layers="16"), "16 layers offloaded"),
        (Tuning(n_ubatch=256), "n_ubatch 256"),
        (Tuning(flash_attention=False), "flash attention off"),
        (Tuning(flash_attention=True), "flash attention on"),
        (Tuning(cache_type="q8_0"), "cache q8_0"),
        (Tuning(slots=64), "64 sequences"),
        (
            Tuning(False, 4, 6, 64, True, "f16", "8", 16),
            "not repacked, 8 layers offloaded, 4 threads to decode, 6 threads to prefill, n_ubatch 64,"
            " flash attention on, cache f16, 16 sequences",
        ),
    ],
)
def test_a_tuning_in_words_leaves_out_what_is_as_usual(tuning: Tuning, text: str) -> None:
    assert tuning_text(tuning) == text


def test_a_line_for_each_way_tells_its_speed_or_why_it_is_not_used() -> None:
    ratios = {"prompt_tokens_per_second": 1.5, "tokens_per_second": 0.701}
    measured = (Tuning(repack=False), {"ratios": ratios, "dropped": None})
    dropped = (Tuning(slots=64), {"ratios": dict.fromkeys(ratios), "dropped": "ended with signal 9"})
    lines = list(candidate_lines([measured, dropped]))
    assert lines == ["not repacked: prompt 1.50 x, gen 0.70 x", "64 sequences: ended with signal 9"]


class BusyBench(ScriptedBench):
    """A bench on a machine that does other things all the time."""

    def speed(self, tuning: Tuning, job: Job) -> float:
        self.disturbed_jobs += 1
        return ScriptedBench.speed(self, tuning, job)


def test_other_numbers_of_threads_are_not_believed_on_a_busy_machine() -> None:
    cost = Cost(alone={("n_threads", 1): (4.0, 4.0), ("n_threads_batch", 1): (4.0, 4.0)})
    found, search, _ = searched(BusyBench(cost))
    assert all(found[name].tuning.n_threads is None for name in found)
    assert "inconclusive: the CPU was busy" in {arm.dropped for arm in search.candidates}


def test_what_was_not_measured_of_a_way_is_not_told() -> None:
    bench = ScriptedBench(Cost(alone={("n_ubatch", 256): (1.2, 1.0)}))
    _, search, _ = searched(bench)
    [told] = [arm for arm in arms(search, n_ubatch=256) if arm.speeds]
    assert told.measured_kinds == {"prefill"}
