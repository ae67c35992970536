"""The scheduler: slot assignment and step contents, by cases and with random traffic."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from scripted_backend import ALPHABET, ScriptedBackend, expected_reply, random_model, tokens

from cerebrum_cli.core.events import AlternativesEvent, Event, FinishEvent, PromptEvent, SequenceId, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine import checkpoints
from cerebrum_cli.engine import scheduler as scheduling
from cerebrum_cli.engine import sequence as sequencing
from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.commands import Cancel, Command, Commands, Submit
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.loop import Loop
from cerebrum_cli.engine.scheduler import CELLS_PER_TOKEN, Scheduler, common_prefix
from cerebrum_cli.engine.sequence import Failure, InspectionRequest, Request, Sequence, create_sequences

COSTLY = 3 * CELLS_PER_TOKEN  # cells that are as slow to copy as 3 tokens to evaluate


@pytest.mark.parametrize(
    ("idle", "prompt", "copied_cells", "slot", "source", "prefix_length"),
    [
        pytest.param({2: "abyy"}, "abcdx", 0, 1, 0, 4, id="the longest prefix"),
        pytest.param({2: "abyy"}, "abcdx", COSTLY, 2, 2, 2, id="an idle prefix instead of a costly copy"),
        pytest.param({1: "old"}, "abce", 0, 2, 0, 3, id="an empty slot"),
        pytest.param({1: "ab"}, "abx", 0, 1, 1, 2, id="the idle one of two equal prefixes"),
    ],
)
def test_scheduler_admits_where_the_least_is_lost(
    idle: dict[int, str], prompt: str, copied_cells: int, slot: int, source: int, prefix_length: int
) -> None:
    scheduler = Scheduler(3)
    for text in ("abcdef", prompt):
        scheduler.waiting.extend(create_sequences(0, Request(tokens(text)), lambda event: None, range(1), 0))
    first = scheduler.next_admission(copied_cells)
    scheduler.admit(first, first.prefix_length)
    for share in scheduler.schedule(lambda position: 100).shares:
        scheduler.record_evaluated(share.sequence, share.tokens)
    for index, text in idle.items():
        scheduler.slots[index].extend(tokens(text))
    second = scheduler.next_admission(copied_cells)
    assert (second.slot.index, second.source.index, second.prefix_length) == (slot, source, prefix_length)


def test_scheduler_puts_late_samples_first_but_not_between_siblings() -> None:
    scheduler, [a, b, c, d] = Scheduler(1), [Request(tokens(text)) for text in ("a long prompt", "b", "c", "d")]
    samples = {each: create_sequences(0, each, lambda event: None, range(2), 0) for each in (a, b, c, d)}
    scheduler.submit([*samples[a], *samples[b]], first=False)
    scheduler.admit(scheduler.next_admission(), 0)
    scheduler.submit(samples[c], first=True)
    scheduler.submit(samples[d], first=False)
    assert list(scheduler.waiting) == [samples[a][1], *samples[c], *samples[b], *samples[d]]


def test_unified_cache_copies_to_empty_slots_and_replaces_the_oldest() -> None:
    """A new conversation with the same beginning costs the previous one nothing."""
    scheduler, used = Scheduler(3, kv_unified=True), []
    for prompt in (
        "ab old one",
        "ab new one",
        "ab third one",
        "ab other one",
        "ab new one, again",
        "ab new one, retried",
    ):
        [sequence] = create_sequences(0, Request(tokens(prompt)), lambda event: None, range(1), 0)
        scheduler.waiting.append(sequence)
        admission = scheduler.next_admission()
        scheduler.admit(admission, admission.prefix_length)
        [share] = scheduler.schedule(lambda position: 100).shares
        scheduler.record_evaluated(sequence, share.tokens)
        scheduler.remove(sequence)
        used.append((admission.slot.index, admission.prefix_length))
    assert used == [(0, 0), (1, 3), (2, 3), (0, 4), (1, 10), (1, 12)]
    assert scheduler.eviction_candidate is scheduler.slots[2]
    held = {cell for slot in scheduler.slots for cell in slot.cells}
    assert scheduler.has_cells(10, len(held) + 10) and not scheduler.has_cells(10, len(held) + 9)


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
        budget=st.sampled_from([60, 1000]),
        unwritable=st.booleans(),
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
        budget: int,
        unwritable: bool,
    ) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(checkpoints, "MIN_SNAPSHOT_TOKENS", 2)
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
            checkpoint_budget=budget * (slots == 1 or shared),  # as every context with one KV cache has
            unwritable=unwritable,
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
            request = Request(prompt, SamplingParams(seed=seed, max_tokens=limit), n=n, opening=3)
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
        request = replace(InspectionRequest.of_reply(prompt, reply, 2), opening=3)
        asked: dict[SequenceId, Sample] = {}
        [sequence] = create_sequences(0, request, partial(self.on_event, asked), range(1), 0)
        asked[sequence.id] = Sample(sequence)
        self.samples += asked.values()
        self.commands.send(Submit([sequence], CancelScope(lambda: self.commands.cancel_count), first=True))

    @precondition(lambda self: any(sample.finish is None for sample in self.samples))
    @rule(data=st.data(), closes=st.booleans())
    def end(self, data: st.DataObject, closes: bool) -> None:
        live = [sample for sample in self.samples if sample.finish is None]
        chosen = data.draw(st.lists(st.sampled_from(live), min_size=1, unique_by=id))
        sequences, done = [sample.sequence for sample in chosen], threading.Event()
        self.commands.send(Cancel(sequences, done, interrupts=closes))
        assert self.loop.process_commands(self.commands)
        assert done.is_set() and not self.stop
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
        else:
            sample.tokens += event.tokens

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

    def run_step(self) -> None:
        """Run one step, and check that an admitted sequence reuses the longest prefix of any slot."""
        assert self.loop.process_commands(self.commands)
        reserved, memory = len(self.backend.reserved), [list(held) for held in self.backend.memory]
        self.loop.step()
        if reserved != len(self.backend.reserved):
            memory = []
        for sample in self.samples:
            if sample.longest_prefix is None and (sample.sequence.slot is not None or sample.tokens or sample.finish):
                prompt, request = sample.sequence.prompt, sample.sequence.request
                needed = len(request.tokens) if isinstance(request, InspectionRequest) else 1
                reusable = prompt[: len(prompt) - needed]
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
            if isinstance(inspection := sequence.request, InspectionRequest):
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
        self.loop.close()
        self.backend.close()


AnyTraffic.TestCase.settings = settings(stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])
test_scheduler_with_any_traffic_gives_each_sequence_its_own_reply = AnyTraffic.TestCase
