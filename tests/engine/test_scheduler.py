"""The scheduler: slot assignment and step contents, by cases and with random traffic."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from scripted_backend import ALPHABET, ScriptedBackend, expected_reply, random_model, tokens

from cerebrum_cli.core.events import AlternativesEvent, Event, FinishEvent, PromptEvent, SequenceId, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine import scheduler as scheduling
from cerebrum_cli.engine import sequence as sequencing
from cerebrum_cli.engine.backend import StopFlag, TokenRow
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.loop import Loop
from cerebrum_cli.engine.messages import Abort, Cancel, Command, Commands, Submit
from cerebrum_cli.engine.scheduler import CELLS_PER_TOKEN, Scheduler, Step, common_prefix
from cerebrum_cli.engine.sequence import Failure, Inspection, Request, Sequence, create_sequences

# Cases.


def add_waiting(scheduler: Scheduler, *prompts: str, n: int = 1) -> list[Sequence]:
    """Queue `n` samples of each prompt."""
    born = [
        one
        for prompt in prompts
        for one in create_sequences(0, Request(tokens(prompt), n=n), lambda event: None, range(n), 0)
    ]
    scheduler.waiting.extend(born)
    return born


def admit_next(scheduler: Scheduler, copied_cells: int = 0) -> tuple[int, int, int]:
    """Admit the next sequence; return the indices of its slot and its source, and the length of the reused prefix."""
    admission = scheduler.next_admission(copied_cells)
    scheduler.admit(admission, admission.prefix_length)
    return admission.slot.index, admission.source.index, admission.prefix_length


def run_step(scheduler: Scheduler) -> None:
    """Schedule the next step, and record it as evaluated."""
    record(scheduler, scheduler.schedule(lambda position: 100))


def record(scheduler: Scheduler, step: Step) -> None:
    """Record a step as evaluated."""
    for share in step.shares:
        scheduler.record_evaluated(share.sequence, share.tokens)


def scheduler_holding(*texts: str) -> Scheduler:
    """Create a scheduler with idle slots that hold these texts."""
    scheduler = Scheduler(len(texts))
    for slot, text in zip(scheduler.slots, texts, strict=True):
        slot.extend(tokens(text))
    return scheduler


def test_scheduler_fills_the_lowest_free_slot_first() -> None:
    scheduler = Scheduler(3)
    add_waiting(scheduler, "ab", "cd", "ef")
    for slot in range(3):
        assert admit_next(scheduler)[0] == slot
        run_step(scheduler)
    assert not scheduler.can_admit


def test_scheduler_reuses_the_longest_prefix() -> None:
    scheduler = scheduler_holding("abxxx", "abcdx", "abcxx")
    add_waiting(scheduler, "abcdef")
    assert admit_next(scheduler) == (1, 1, 4)
    assert list(scheduler.slots[1].tokens) == list(b"abcd")


def test_scheduler_prefers_an_idle_prefix_to_a_costly_copy() -> None:
    for cells, expected in ((0, (1, 0, 4)), (3 * CELLS_PER_TOKEN, (2, 2, 2))):
        scheduler = Scheduler(3)
        add_waiting(scheduler, "abcdef", "abcdx")
        admit_next(scheduler, cells)
        run_step(scheduler)
        scheduler.slots[2].extend(tokens("abyy"))
        assert admit_next(scheduler, cells) == expected


def test_scheduler_copies_a_prefix_to_an_empty_slot_first() -> None:
    scheduler = scheduler_holding("", "old", "")
    add_waiting(scheduler, "abcd", "abce")
    assert admit_next(scheduler) == (0, 0, 0)
    run_step(scheduler)
    assert admit_next(scheduler) == (2, 0, 3)
    assert [bytes(slot.tokens.tolist()) for slot in scheduler.slots] == [b"abcd", b"old", b"abc"]


def test_scheduler_prefers_an_idle_slot_of_two_equal_prefixes() -> None:
    scheduler = scheduler_holding("", "abc")
    scheduler.slots[1].clear()
    [first, _] = add_waiting(scheduler, "abx", "aby")
    admit_next(scheduler)
    run_step(scheduler)
    scheduler.slots[1].extend(b"ab")
    assert admit_next(scheduler) == (1, 1, 2)
    assert first.slot == 0


def test_scheduler_admits_sibling_samples_together() -> None:
    scheduler = Scheduler(3)
    other, *samples = [*add_waiting(scheduler, "cd"), *add_waiting(scheduler, "ab", n=4)]
    admit_next(scheduler)
    run_step(scheduler)
    scheduler.remove(other)
    admit_next(scheduler)
    run_step(scheduler)
    twins = scheduler.sibling_samples(samples[0])
    assert [(twin.sequence, twin.slot.index, twin.source.index, twin.prefix_length) for twin in twins] == [
        (samples[1], 0, 1, 2),
        (samples[2], 2, 1, 2),
    ]
    for twin in twins:
        scheduler.admit(twin, twin.prefix_length)
    assert [sequence.cached_tokens for sequence in samples] == [0, 2, 2, 0]
    assert list(scheduler.waiting) == [samples[3]]


def test_scheduler_prefills_one_prompt_with_logits_of_its_last_token() -> None:
    scheduler = Scheduler(2)
    add_waiting(scheduler, "ab", "cdefg")
    admit_next(scheduler)
    run_step(scheduler)
    scheduler.running[0].generated.append(ord("!"))
    admit_next(scheduler)
    steps = []
    for _ in range(3):
        step = scheduler.schedule(lambda position: 2)
        steps.append(step.rows)
        record(scheduler, step)
    assert steps == [
        [TokenRow(1, 0, ord("c"), False), TokenRow(1, 1, ord("d"), False)],
        [TokenRow(1, 2, ord("e"), False), TokenRow(1, 3, ord("f"), False)],
        [TokenRow(1, 4, ord("g"), True)],
    ]


# Random requests, cancellations and interruptions, against a backend that checks every call.


@dataclass(slots=True)
class Sample:
    """A sequence, and the events its caller received."""

    sequence: Sequence
    longest_prefix: int | None = None
    tokens: list[int] = field(default_factory=list)
    reports: list[AlternativesEvent] = field(default_factory=list)
    prefilled: list[int] = field(default_factory=list)
    finish: FinishEvent | None = None


class NonBlockingCommands(Commands):
    """Commands without blocking: there is no other thread to send any."""

    def take(self, wait: bool) -> Command | None:
        return super().take(wait=False)


class AnyTraffic(RuleBasedStateMachine):
    """Submit, step, interrupt, abort and cancel in any order; replies never depend on it."""

    @initialize(
        slots=st.integers(1, 4),
        batch_size=st.integers(4, 9),
        can_trim=st.booleans(),
        context=st.integers(14, 30),
        hope=st.integers(1, 12),
        between=st.integers(1, 9),
        shared=st.booleans(),
        cells=st.sampled_from([20, 60, 1_000_000]),
    )
    def start(
        self,
        slots: int,
        batch_size: int,
        can_trim: bool,
        context: int,
        hope: int,
        between: int,
        shared: bool,
        cells: int,
    ) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(sequencing, "EXPECTED_REPLY_TOKENS", hope)
        self.patch.setattr(scheduling, "MAX_PREFILL_BETWEEN_DECODES", between)
        self.patch.setattr(scheduling, "MIN_FREE_CELLS", hope)
        self.backend = ScriptedBackend(
            random_model,
            slots=slots,
            batch_size=batch_size,
            can_trim=can_trim,
            context_size=context,
            kv_unified=shared,
            fitting_cells=cells,
            max_outputs=between,
        )
        self.stop = StopFlag()
        self.commands = NonBlockingCommands(self.stop)
        self.loop = Loop(self.backend.open(lambda event: None, self.stop), 0.0)
        self.samples: list[Sample] = []

    @rule(
        prompts=st.lists(
            st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=12).map(tuple), min_size=1, max_size=3
        ),
        limit=st.integers(1, 20),
        n=st.integers(1, 4),
        seed=st.integers(0, 3),
    )
    def ask(self, prompts: list[tuple[int, ...]], limit: int, n: int, seed: int) -> None:
        born: list[Sequence] = []
        for index, prompt in enumerate(prompts):
            request = Request(prompt, SamplingParams(seed=seed, max_tokens=limit), n=n)
            asked: dict[SequenceId, Sample] = {}
            for sequence in create_sequences(index, request, partial(self.on_event, asked), range(n), seed):
                asked[sequence.id] = Sample(sequence)
                born.append(sequence)
            self.samples += asked.values()
        self.commands.send(Submit(born, CancelScope(lambda: self.commands.cancel_count)))

    @rule(
        prompt=st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=6).map(tuple),
        reply=st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=8).map(tuple),
    )
    def inspect(self, prompt: tuple[int, ...], reply: tuple[int, ...]) -> None:
        inspection = Inspection(reply, 2)
        request = Request((*prompt, *reply[:-1]), SamplingParams(seed=0, max_tokens=1), inspection=inspection)
        asked: dict[SequenceId, Sample] = {}
        [sequence] = create_sequences(0, request, partial(self.on_event, asked), range(1), 0)
        asked[sequence.id] = Sample(sequence)
        self.samples += asked.values()
        self.commands.send(Submit([sequence], CancelScope(lambda: self.commands.cancel_count)))

    @precondition(lambda self: any(sample.finish is None for sample in self.samples))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        live = [sample for sample in self.samples if sample.finish is None]
        chosen = data.draw(st.lists(st.sampled_from(live), min_size=1, unique_by=id))
        self.commands.send(Abort([sample.sequence for sample in chosen]))
        assert not self.stop
        assert self.loop.process_commands(self.commands)
        assert all(sample.finish and sample.finish.reason == "cancelled" for sample in chosen)

    @staticmethod
    def on_event(asked: dict[SequenceId, Sample], event: Event | Failure) -> None:
        assert isinstance(event, PromptEvent | TokenEvent | AlternativesEvent | FinishEvent), event
        sample = asked[event.sequence]
        assert sample.finish is None
        if isinstance(event, FinishEvent):
            sample.finish = event
        elif isinstance(event, PromptEvent):
            assert not sample.tokens
            sample.prefilled.append(event.evaluated)
        elif isinstance(event, AlternativesEvent):
            sample.reports.append(event)
        elif event.token is not None:
            sample.tokens.append(event.token)

    @precondition(lambda self: any(sample.finish is None for sample in self.samples))
    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            if all(sample.finish for sample in self.samples):
                return
            self.run_step()

    @precondition(lambda self: any(sample.finish is None for sample in self.samples))
    @rule(kept=st.integers(0, 8))
    def interrupt(self, kept: int) -> None:
        self.backend.interrupts[len(self.backend.steps)] = kept
        self.run_step()

    @precondition(lambda self: any(sample.finish is None for sample in self.samples))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        live = [sample for sample in self.samples if sample.finish is None]
        chosen = data.draw(st.lists(st.sampled_from(live), min_size=1, unique_by=id))
        done = threading.Event()
        self.commands.send(Cancel([sample.sequence for sample in chosen], done))
        assert self.loop.process_commands(self.commands)
        assert done.is_set() and not self.stop
        assert all(sample.finish and sample.finish.reason == "cancelled" for sample in chosen)

    def run_step(self) -> None:
        """Run one step, and check that an admitted sequence reuses the longest prefix of any slot."""
        assert self.loop.process_commands(self.commands)
        reserved, memory = len(self.backend.reserved), [list(held) for held in self.backend.memory]
        self.loop.step()
        if reserved != len(self.backend.reserved):
            memory = []
        for sample in self.samples:
            if sample.longest_prefix is None and (sample.sequence.slot is not None or sample.tokens or sample.finish):
                prompt, inspection = sample.sequence.prompt, sample.sequence.request.inspection
                reusable = prompt[: len(prompt) - (len(inspection.tokens) if inspection else 1)]
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
            if inspection := sequence.request.inspection:
                prompt, count = tuple(sequence.prompt), len(sample.reports)
                first = len(prompt) - len(inspection.tokens)
                assert [event.position for event in sample.reports] == list(range(count))
                assert [event.given.token for event in sample.reports] == list(inspection.tokens[:count])
                likeliest = [(event.likeliest[0].token, -1000 * event.likeliest[0].logprob) for event in sample.reports]
                assert likeliest == [(prompt[place], place + 1) for place in range(first, first + count)]
                assert finish.reason == "cancelled" or (finish.reason, count) == ("stop", len(inspection.tokens))
                assert not sample.tokens
                continue
            said, reason = expected_reply(
                tuple(sequence.prompt), sequence.seed, sequence.request.params.max_tokens, self.backend.context_size
            )
            if finish.reason == "cancelled":
                assert sample.tokens == said[: len(sample.tokens)]
            else:
                assert (sample.tokens, finish.reason) == (said, reason)
            assert finish.completion_tokens == len(sample.tokens)
        self.backend.close()


AnyTraffic.TestCase.settings = settings(stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])
test_scheduler_with_any_traffic_gives_each_sequence_its_own_reply = AnyTraffic.TestCase
