"""Slots: which of them sequences get, what is reused and returned to, by cases and with random traffic."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import pytest
from asking import ask, collect_replies, generate, running_engine
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from scripted_backend import ALPHABET, ScriptedBackend, endless, expected_reply, random_model, replies, tokens
from thinkers import CountingControl

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.events import Event, FinishEvent, PromptEvent, SequenceId, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.token_ids import common_prefix
from cerebrum_cli.engine import prompt_cache, requests as engine_requests, scheduler as scheduling
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.local_engine import Commands, EngineCommand
from cerebrum_cli.engine.loop import Loop
from cerebrum_cli.engine.requests import Force, Request
from cerebrum_cli.engine.scheduler import Scheduler
from cerebrum_cli.engine.sequence import Sequence
from cerebrum_cli.engine.step import StopFlag


def sequences_of(request: Request, samples: int, index: int = 0, seed: int = 0) -> list[Sequence]:
    return [
        Sequence(SequenceId(index, sample), request, seed + sample, lambda event: None) for sample in range(samples)
    ]


def test_scheduler_puts_late_samples_first() -> None:
    scheduler = Scheduler(1, kv_unified=False)
    a, b, c, d = (sequences_of(Request(tokens(text)), 2) for text in ("a long prompt", "b", "c", "d"))
    scheduler.submit([*a, *b], first=False)
    scheduler.admit(scheduler.next_admission(0, lambda _, length: length), 0)
    scheduler.submit(c, first=True)
    scheduler.submit(d, first=False)
    assert list(scheduler.waiting) == [*c, a[1], *b, *d]


def test_unified_cache_copies_to_empty_slots_and_replaces_the_oldest() -> None:
    """A new conversation with the same beginning costs the previous one nothing."""
    scheduler, used = Scheduler(3, kv_unified=True), []
    for end in ("old one", "new one", "third one", "other one", "new one, again", "new one, retried"):
        [sequence] = sequences_of(Request(tokens(f"ab {end}")), 1)
        scheduler.waiting.append(sequence)
        admission = scheduler.next_admission(0, lambda _, length: length)
        scheduler.admit(admission, admission.prefix_length)
        [share] = scheduler.schedule(lambda position: 100)
        scheduler.record_evaluated(sequence, share.tokens)
        scheduler.remove(sequence)
        used.append((admission.slot.index, admission.prefix_length))
    assert used == [(0, 0), (1, 3), (2, 3), (0, 4), (1, 10), (1, 12)]
    assert scheduler.slots_to_overwrite[0] is scheduler.slots[2]
    held = {cell for slot in scheduler.slots for cell in slot.cells}
    assert scheduler.has_cells(10, len(held) + 10) and not scheduler.has_cells(10, len(held) + 9)


def test_unified_cache_needs_a_shared_beginning_once() -> None:
    scheduler = Scheduler(2, kv_unified=True)
    [first], [second] = (sequences_of(Request(tokens(f"the same, {end}")), 1) for end in "ab")
    scheduler.submit([first], first=False)
    scheduler.admit(scheduler.next_admission(0, lambda _, length: length), 0)
    scheduler.record_evaluated(first, scheduler.schedule(lambda position: 100)[0].tokens)
    needed = len("the same, ab") + scheduling.MIN_FREE_CELLS
    assert scheduler.can_hold(second, needed) and not scheduler.can_hold(second, needed - 1)


def test_forced_tokens_of_several_sequences_share_their_steps() -> None:
    control = partial(CountingControl, lambda count: Force(tokens("forced")) if count == 2 else None)
    request = Request(tokens("a"), SamplingParams(max_tokens=12), Ask(n=2), controls=(control,))
    with running_engine(backend := ScriptedBackend(lambda held, seed: held[0], slots=2)) as engine:
        said = collect_replies(generate(engine, [request])).values()
    assert {reply.text[2:8] for reply in said} == {"forced"}
    assert {len(step) for step in backend.steps[1:]} == {2}


# Models that cannot forget their last tokens return to checkpoints.

FIRST = "a question of more than sixteen tokens, asked first? "
SECOND, THIRD = f"{FIRST}An answer. Another? ", f"{FIRST}An answer. A third? "
SCRIPT = {FIRST: "An answer. ", SECOND: "So. ", THIRD: "Or so. "}
OPENED, ANSWERED = len(FIRST) - engine_requests.OPENING_TOKENS, len(FIRST) + len("An answer. ")
TURNS = [(FIRST, 1), (FIRST, 1), (SECOND, 1), (SECOND, 1), (THIRD, 1)]  # the last question again, and another instead


@pytest.mark.parametrize(
    ("slots", "budget", "asked", "cached"),
    [
        (1, 10_000, TURNS, [0, OPENED, *[ANSWERED] * 3]),
        (3, 10_000, TURNS, [0, OPENED, *[ANSWERED] * 3]),
        (1, 10_000, [(FIRST, 4)], [0, *[OPENED] * 3]),
        # one of 37 tokens, of which each slot has its own, though four of them would not fit
        (4, 400, [(FIRST, 4), (FIRST, 4)], [0, *[len(FIRST)] * 3, OPENED, *[len(FIRST)] * 3]),
        # one of 37 tokens is dropped for one of 64
        (1, 400, [(FIRST, 1), (SECOND, 1), (FIRST, 1)], [0, ANSWERED, 0]),
    ],
    ids=["turns", "turns in a unified cache", "samples", "shared by samples", "within the budget"],
)
def test_recurrent_model_returns_to_checkpoints(
    slots: int, budget: int, asked: list[tuple[str, int]], cached: list[int]
) -> None:
    """A token takes 4 bytes of the budget."""
    options = {"can_trim": False, "kv_unified": slots > 1, "checkpoint_budget": budget}
    with running_engine(ScriptedBackend(replies(SCRIPT), slots, 200, **options)) as engine:  # type: ignore[arg-type]
        said = [(prompt, reply) for prompt, n in asked for reply in ask(engine, prompt, n=n)]
    assert [reply.text for _, reply in said] == [SCRIPT[prompt] for prompt, _ in said]
    assert [reply.cached for _, reply in said] == cached


def test_common_prefix_is_snapshot_for_slots_that_cannot_be_trimmed() -> None:
    """The second prompt shows what is common, the third loads it."""
    common = "Some examples that all questions have in common, in more than sixty-four tokens: "
    script = {f"{common}{name}": "Yes." for name in ("first", "second", "third", "fourth")}
    backend = ScriptedBackend(replies(script), 2, 200, can_trim=False)
    with running_engine(backend) as engine:
        said = [ask(engine, prompt)[0] for prompt in script]
    assert [reply.cached for reply in said] == [0, 0, len(common), len(common)]


@pytest.mark.parametrize(
    ("cells", "limit", "reserved"),
    [
        (1_000_000, None, [(40, 4), (70, 4), (100, 4)]),
        (170, None, [(40, 4), (70, 2), (100, 1)]),
        (1_000_000, 80, [(90, 4)]),
    ],
)
def test_sequences_are_evaluated_again_in_longer_slots(
    monkeypatch: pytest.MonkeyPatch, cells: int, limit: int | None, reserved: list[tuple[int, int]]
) -> None:
    """Prompts of 10 tokens, in slots for 30 more at first, or for as many as requested if memory is free."""
    monkeypatch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", 30)
    script = {f"{name} prompt. ": name for name in "abcd"}
    backend = ScriptedBackend(endless(script), 4, 100, fitting_cells=cells)
    with running_engine(backend) as engine:
        requests = [Request(tokens(prompt), SamplingParams(max_tokens=limit)) for prompt in script]
        said = collect_replies(generate(engine, requests)).values()
    assert [len(reply.ids) for reply in said] == [limit or 90] * 4
    is_moved = len(reserved) > 1
    assert (backend.evaluated > 4 * (9 + (limit or 90))) == is_moved
    assert backend.reserved == reserved


# Random requests, cancellations and interruptions, against a backend that checks every call.


@dataclass(slots=True)
class Sample:
    sequence: Sequence
    longest_prefix: int | None = None
    tokens: list[int] = field(default_factory=list)
    finish: FinishEvent | None = None

    def on_event(self, event: Event | BaseException) -> None:
        assert isinstance(event, PromptEvent | TokenEvent | FinishEvent), event
        assert self.finish is None
        if isinstance(event, FinishEvent):
            self.finish = event
        elif isinstance(event, PromptEvent):
            assert not self.tokens
        else:
            self.tokens += event.tokens


class NonBlockingCommands(Commands):
    """Commands without blocking: there is no other thread to send any."""

    def take(self, wait: bool) -> EngineCommand | None:
        return super().take(wait=False)


def prompts(longest: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=longest).map(tuple)


has_work = precondition(lambda machine: any(sample.finish is None for sample in machine.samples))


class AnyTraffic(RuleBasedStateMachine):
    """Submit, step, interrupt, abort and cancel in any order; replies never depend on it."""

    @initialize(
        backend=st.builds(
            partial(ScriptedBackend, random_model),
            slots=st.integers(1, 4),
            batch_size=st.integers(4, 9),
            can_trim=st.booleans(),
            context_size=st.integers(14, 30),
            kv_unified=st.booleans(),
            fitting_cells=st.sampled_from([20, 60, 1_000_000]),
            max_outputs=st.integers(1, 9),
            checkpoint_budget=st.sampled_from([60, 1000]),
            unwritable=st.booleans(),
        ),
        room=st.integers(1, 12),
    )
    def start(self, backend: ScriptedBackend, room: int) -> None:
        if backend.slots > 1 and not backend.kv_unified:
            backend.checkpoint_budget = 0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(prompt_cache, "MIN_SNAPSHOT_TOKENS", 2)
        self.patch.setattr(engine_requests, "EXPECTED_REPLY_TOKENS", room)
        self.patch.setattr(scheduling, "MAX_PREFILL_BETWEEN_DECODES", backend.max_outputs)
        self.patch.setattr(scheduling, "MIN_FREE_CELLS", room)
        self.backend, self.stop = backend, StopFlag()
        self.commands = NonBlockingCommands(self.stop)
        self.loop = Loop(self.backend.open(lambda event: None, self.stop), 0.0)
        self.samples: list[Sample] = []

    @rule(
        prompts=st.lists(prompts(12), min_size=1, max_size=3),
        limit=st.integers(1, 20),
        n=st.integers(1, 4),
        seed=st.integers(0, 3),
    )
    def submit(self, prompts: list[tuple[int, ...]], limit: int, n: int, seed: int) -> None:
        params = SamplingParams(seed=seed, max_tokens=limit)
        sequences = []
        for index, prompt in enumerate(prompts):
            sequences += sequences_of(Request(prompt, params, Ask(n=n), opening=3), n, index, seed)
        for sequence in sequences:
            self.samples.append(Sample(sequence))
            sequence.emit = self.samples[-1].on_event
        self.commands.submit(sequences, CancelScope())

    @has_work
    @rule(data=st.data(), closes=st.booleans())
    def end(self, data: st.DataObject, closes: bool) -> None:
        live = [sample for sample in self.samples if sample.finish is None]
        chosen = data.draw(st.lists(st.sampled_from(live), min_size=1, unique_by=id))
        done = self.commands.cancel([sample.sequence for sample in chosen], interrupts=closes)
        assert self.commands.execute(self.loop)
        assert not done.empty() and not self.stop
        assert all(sample.finish and sample.finish.reason == "cancelled" for sample in chosen)

    @has_work
    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            if all(sample.finish for sample in self.samples):
                return
            self.run_step()

    @has_work
    @rule(kept=st.integers(0, 8))
    def interrupt(self, kept: int) -> None:
        self.backend.interrupts[len(self.backend.steps)] = kept
        self.run_step()

    def run_step(self) -> None:
        """Run one step, and check that an admitted sequence reuses the longest prefix of any slot."""
        assert self.commands.execute(self.loop)
        reserved, memory = len(self.backend.reserved), [list(held) for held in self.backend.memory]
        self.loop.step()
        if reserved != len(self.backend.reserved):
            memory = []
        for sample in self.samples:
            if sample.longest_prefix is None and (sample.sequence.slot is not None or sample.tokens or sample.finish):
                reusable = sample.sequence.prompt[:-1]
                sample.longest_prefix = max((common_prefix(held, reusable) for held in memory), default=0)
                if self.backend.can_trim and not (sample.finish and sample.finish.reason == "cancelled"):
                    assert sample.sequence.cached_tokens >= sample.longest_prefix

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        self.patch.undo()
        taken = -1
        while taken < len(self.backend.steps):
            taken = len(self.backend.steps)
            self.run_step()
        for sample in self.samples:
            finish, sequence = sample.finish, sample.sequence
            assert finish and sequence.request.params.max_tokens
            said, reason = expected_reply(
                tuple(sequence.prompt), sequence.seed, sequence.request.params.max_tokens, self.backend.context_size
            )
            if finish.reason == "cancelled":
                assert sample.tokens == said[: len(sample.tokens)]
            else:
                assert (sample.tokens, finish.reason) == (said, reason)
            assert finish.completion_tokens == len(sample.tokens)
        self.backend.close()


AnyTraffic.TestCase.settings = settings(
    max_examples=45, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
)
test_scheduler_with_any_traffic_gives_each_sequence_its_own_reply = AnyTraffic.TestCase
