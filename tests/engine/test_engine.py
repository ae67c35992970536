"""The engine: replies, samples, reuse of evaluated tokens, seeds, memory and timings."""

from __future__ import annotations

import pytest
from asking import ask, collect_replies, running_engine
from scripted_backend import MARK, ScriptedBackend, replies, tokens

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import PromptEvent
from cerebrum_cli.core.sampling import SEEDS, SamplingParams
from cerebrum_cli.engine.sequence import Request

GREETING = replies({"hello ": "world", "hello world, ": "who are you?"})


def test_engine_streams_tokens_and_drops_the_end_token() -> None:
    with running_engine(ScriptedBackend(GREETING)) as engine:
        [reply] = ask(engine, "hello ")
    assert reply.pieces == list("world")
    assert reply.ids == list(b"world")
    assert reply.finish
    assert (reply.reason, reply.finish.prompt_tokens, reply.finish.completion_tokens) == ("stop", 6, 5)


@pytest.mark.parametrize(
    ("slots", "cached"), [(1, [0, 5, 5, 5]), (2, [0, 6, 5, 6]), (4, [0, 6, 6, 6]), (8, [0, 6, 6, 6])]
)
def test_engine_evaluates_the_prompt_of_samples_once(slots: int, cached: list[int]) -> None:
    backend = ScriptedBackend(GREETING, slots=slots)
    with running_engine(backend) as engine:
        said = ask(engine, "hello ", n=4)
    assert [reply.text for reply in said] == ["world"] * 4
    assert [reply.cached for reply in said] == cached
    assert backend.evaluated == 4 * len("hello world") - sum(cached)


@pytest.mark.parametrize(("kv_unified", "cached"), [(False, 0), (True, 2)])
def test_engine_copies_only_a_prefix_worth_the_copy(kv_unified: bool, cached: int) -> None:
    """Between separate caches of a thousand cells, a copy takes as long as evaluating two tokens."""
    script = {"ab: one": "first", "ab! two": "second"}
    backend = ScriptedBackend(replies(script), slots=2, context_size=2000, kv_unified=kv_unified)
    with running_engine(backend) as engine:
        said = collect_replies(engine.generate(Request(tokens(prompt)) for prompt in script))
    assert [(reply.text, reply.cached) for reply in said.values()] == [("first", 0), ("second", cached)]


def test_engine_decodes_all_sequences_in_one_step() -> None:
    backend = ScriptedBackend(GREETING, slots=4)
    with running_engine(backend) as engine:
        ask(engine, "hello ", n=4)
    assert [len(step) for step in backend.steps] == [6] + [4] * len("world")


@pytest.mark.parametrize(
    ("prompt", "text", "cached"),
    [("hello world, ", "who are you?", 11), ("hello ", "world", 5), ("help!", "coming", 3)],
)
def test_engine_evaluates_only_what_follows_the_common_prefix(prompt: str, text: str, cached: int) -> None:
    script = {"hello ": "world", "hello world, ": "who are you?", "help!": "coming"}
    backend = ScriptedBackend(replies(script))
    with running_engine(backend) as engine:
        ask(engine, "hello ")
        before = backend.evaluated
        [reply] = ask(engine, prompt)
    assert (reply.text, reply.cached) == (text, cached)
    assert backend.evaluated - before == len(prompt) - cached + len(text)


def test_engine_evaluates_again_if_a_slot_cannot_be_trimmed() -> None:
    script = {"hello ": "world", "hello world, ": "who are you?", "help!": "coming"}
    with running_engine(ScriptedBackend(replies(script), can_trim=False, slots=2)) as engine:
        [one], [two], [three] = ask(engine, "hello "), ask(engine, "hello world, "), ask(engine, "help!")
    assert [one.text, two.text, three.text] == ["world", "who are you?", "coming"]
    assert [one.cached, two.cached, three.cached] == [0, len("hello world"), 0]


def test_engine_shares_the_prompt_among_samples_without_trimming() -> None:
    backend = ScriptedBackend(GREETING, can_trim=False, slots=3)
    with running_engine(backend) as engine:
        said = ask(engine, "hello ", n=3)
    assert [reply.text for reply in said] == ["world"] * 3
    assert backend.evaluated == 6 + 3 * len("world")


def test_engine_prefills_in_chunks_and_reports_progress() -> None:
    prompt = "x" * 40
    with running_engine(ScriptedBackend(replies({prompt: "y", "x" * 41: "z"}))) as engine:
        for asked, told in ((prompt, [0, 16, 32]), ("x" * 41, [40])):
            events = list(engine.generate([Request(tokens(asked))]))
            progress = [event for event in events if isinstance(event, PromptEvent)]
            assert [event.evaluated for event in progress] == told
            assert {event.total for event in progress} == {len(asked)}
            assert events[: len(progress)] == progress


def test_engine_never_shows_a_stop_string_across_tokens() -> None:
    with running_engine(ScriptedBackend(replies({"?": "one STOP two"}))) as engine:
        [reply] = ask(engine, "?", stop=("STOP", "###"))
    assert (reply.text, reply.reason) == ("one ", "stop")
    assert reply.pieces == ["o", "n", "e", " ", "", "", "", ""]
    assert bytes(reply.ids) == b"one STOP"


def test_engine_never_splits_characters() -> None:
    with running_engine(ScriptedBackend(replies({"?": "a🙂é", "!": b"\xf0\x9f\xff", "-": b"a\xf0\x9f"}))) as engine:
        [emoji], [invalid], [incomplete] = ask(engine, "?"), ask(engine, "!"), ask(engine, "-")
        [truncated] = ask(engine, "?", max_tokens=3)
    assert emoji.pieces == ["a", "", "", "", "🙂", "", "é"]
    assert (invalid.text, incomplete.text, truncated.text) == ("��", "a�", "a")


def test_engine_hides_control_tokens_unless_requested() -> None:
    with running_engine(ScriptedBackend(replies({"?": (MARK, *b"a")}))) as engine:
        [silent] = ask(engine, "?")
        visible = engine.backend.special_token_ids(["<mark>"])
        [spelled] = collect_replies(engine.generate([Request(tokens("?"), visible_tokens=visible)])).values()
    assert (silent.text, spelled.text) == ("a", "<mark>a")
    assert silent.ids == spelled.ids == [MARK, ord("a")]


@pytest.mark.parametrize(
    ("limit", "context_size", "text", "reason"),
    [(3, 100, "wor", "length"), (6, 100, "world", "stop"), (None, 8, "wo", "context"), (50, 8, "wo", "context")],
)
def test_engine_ends_a_reply_at_its_limit_or_the_context(
    limit: int | None, context_size: int, text: str, reason: str
) -> None:
    with running_engine(ScriptedBackend(GREETING, context_size=context_size)) as engine:
        [reply] = ask(engine, "hello ", max_tokens=limit)
    assert (reply.text, reply.reason, reply.finish and reply.finish.context_size) == (text, reason, context_size)


def seeded(held: tuple[int, ...], seed: int) -> int:
    """Repeat the digits of the seed endlessly."""
    digits = str(seed)
    return ord(digits[(len(held) - 1) % len(digits)])


def test_engine_draws_reproducible_seeds() -> None:
    with running_engine(ScriptedBackend(seeded)) as engine:
        drawn = [ask(engine, "?", max_tokens=10)[0] for _ in range(3)]
        again = [ask(engine, "?", max_tokens=10, seed=reply.seed)[0] for reply in drawn]
        wrapped = ask(engine, "?", n=2, seed=SEEDS - 1, max_tokens=1)
    assert [reply.seed for reply in wrapped] == [SEEDS - 1, 0]
    assert len({reply.seed for reply in drawn}) == 3
    assert all(0 <= reply.seed < SEEDS for reply in drawn)
    assert [reply.text for reply in drawn] == [reply.text for reply in again]


def test_engine_grows_memory_only_when_idle() -> None:
    backend = ScriptedBackend(replies({"short": "a" * 30, "long": "b" * 80}), slots=2)
    with running_engine(backend) as engine:
        small = engine.generate([Request(tokens("short"), SamplingParams(max_tokens=30))])
        next(small)
        assert backend.capacity == 35
        [large] = ask(engine, "long", max_tokens=80)
        [first] = collect_replies(small).values()
        [again] = ask(engine, "short", max_tokens=2)
    assert (first.text, large.text, again.text) == ("a" * 30, "b" * 80, "aa")
    assert (backend.capacity, again.cached) == (84, 0)


def test_engine_makes_slots_for_all_again_after_a_long_reply() -> None:
    script = {"a" * length: "b" for length in (10, 600, 8000)}
    backend = ScriptedBackend(replies(script), slots=8, context_size=10_000, fitting_cells=16_000)
    with running_engine(backend) as engine:
        for length, n in ((8000, 1), (600, 1), (10, 8), (600, 2), (10, 8)):
            assert [reply.text for reply in ask(engine, "a" * length, n=n, max_tokens=900)] == ["b"] * n
    assert backend.reserved == [(8900, 1), (910, 8), (1500, 5), (910, 8)]


def test_engine_makes_no_idle_slots_for_long_replies() -> None:
    prompts = {n: "a" * n for n in (8000, 8100, 8200)}
    backend = ScriptedBackend(replies(dict.fromkeys(prompts.values(), "b")), slots=8, context_size=10_000)
    with running_engine(backend) as engine:
        for (n, most), prompt in zip(((1, 1), (3, 1), (1, 6)), prompts.values(), strict=True):
            list(engine.generate([Request(tokens(prompt), SamplingParams(max_tokens=10), n=n, max_n=most)]))
    assert backend.reserved == [(8010, 1), (8110, 3), (8210, 6)]


def test_engine_groups_requests_by_expected_length() -> None:
    backend = ScriptedBackend(replies({}), slots=64, context_size=10_000)
    with running_engine(backend) as engine:
        short, long = Request(tokens("a" * 300)), Request(tokens("b" * 8000))
        assert engine.group_by_length([short] * 3 + [long] + [short] * 60) == [[0, 1, 2, *range(4, 64)], [3]]
        assert engine.group_by_length([short, long, short]) == [[0, 1, 2]]
        assert engine.group_by_length([]) == []


def test_engine_recovers_after_a_failed_allocation() -> None:
    backend = ScriptedBackend(GREETING, fits=20)
    with running_engine(backend) as engine:
        for _ in range(2):
            with pytest.raises(EngineError, match="no memory"):
                ask(engine, "hello ", max_tokens=50)
            assert ask(engine, "hello ", max_tokens=9)[0].text == "world"


def test_engine_measures_prefill_and_decode() -> None:
    with running_engine(ScriptedBackend(GREETING)) as engine:
        first, second = ask(engine, "hello ")[0].finish, ask(engine, "hello ")[0].finish
    assert first and second
    assert (first.timings.prefill_tokens, first.timings.decode_steps) == (6, 5)
    assert (second.timings.prefill_tokens, second.timings.decode_steps) == (1, 5)
    assert 0 < first.timings.prefill_s <= first.timings.ttft_s
    assert first.timings.decode_s > 0 and first.timings.tokens_per_second > 0
    assert first.timings.load_s == second.timings.load_s >= 0
