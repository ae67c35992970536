"""The engine says what the model says, once for each sample, and evaluates nothing twice."""

from __future__ import annotations

import pytest
from asking import ask, gathered, running
from scripted_backend import FIRST_WORD, MARK, ScriptedBackend, replies, tokens

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.events import PromptEvent, SequenceId, TokenEvent
from cerebrum_cli.core.parts import Text
from cerebrum_cli.core.sampling import SEEDS, SamplingParams
from cerebrum_cli.engine.sequence import Request

GREETING = replies({"hello ": "world", "hello world, ": "who are you?"})


def test_a_reply_streams_token_by_token_and_ends_without_its_end_token() -> None:
    with running(ScriptedBackend(GREETING)) as engine:
        [reply] = ask(engine, "hello ")
    assert reply.pieces == list("world")
    assert reply.ids == list(b"world")
    assert reply.finish
    assert (reply.reason, reply.finish.prompt_tokens, reply.finish.completion_tokens) == ("stop", 6, 5)


def test_a_reply_may_be_empty() -> None:
    with running(ScriptedBackend(replies({"?": ""}))) as engine:
        [reply] = ask(engine, "?")
    assert (reply.text, reply.ids, reply.reason) == ("", [], "stop")


def test_questions_about_the_vocabulary_are_answered_once_the_model_is_loaded() -> None:
    with running(ScriptedBackend(GREETING)) as engine:
        assert engine.tokenize([Text("hé")]) == tokens("hé")
        assert engine.backend.special_token_text("eos") == "<end>"


def test_a_prompt_without_tokens_is_refused_before_anything_is_evaluated() -> None:
    backend = ScriptedBackend(GREETING)
    with running(backend) as engine, pytest.raises(UsageError):
        list(engine.generate([Request(tokens("hello ")), Request(())]))
    assert backend.steps == []


def test_no_requests_have_no_events() -> None:
    with running(ScriptedBackend(GREETING)) as engine:
        assert list(engine.generate([])) == []


@pytest.mark.parametrize(
    ("slots", "cached"), [(1, [0, 5, 5, 5]), (2, [0, 6, 5, 6]), (4, [0, 6, 6, 6]), (8, [0, 6, 6, 6])]
)
def test_samples_of_one_prompt_evaluate_it_once_and_its_last_token_again_where_slots_are_few(
    slots: int, cached: list[int]
) -> None:
    backend = ScriptedBackend(GREETING, slots=slots)
    with running(backend) as engine:
        said = ask(engine, "hello ", n=4)
    assert [reply.text for reply in said] == ["world"] * 4
    assert [reply.cached for reply in said] == cached
    assert backend.evaluated == 4 * len("hello world") - sum(cached)


def test_all_that_talk_are_decoded_in_one_step() -> None:
    backend = ScriptedBackend(GREETING, slots=4)
    with running(backend) as engine:
        ask(engine, "hello ", n=4)
    assert [len(step) for step in backend.steps] == [6] + [4] * len("world")


def test_the_next_turn_evaluates_only_what_is_new() -> None:
    backend = ScriptedBackend(GREETING)
    with running(backend) as engine:
        ask(engine, "hello ")
        before = backend.evaluated
        [reply] = ask(engine, "hello world, ")
    assert (reply.text, reply.cached) == ("who are you?", len("hello world"))
    assert backend.evaluated - before == len(", ") + len("who are you?")


def test_a_prompt_asked_again_evaluates_its_last_token_only() -> None:
    backend = ScriptedBackend(GREETING)
    with running(backend) as engine:
        first, second = ask(engine, "hello "), ask(engine, "hello ")
    assert first[0].text == second[0].text == "world"
    assert (second[0].cached, len(backend.steps[len("world") + 1])) == (5, 1)


def test_a_prompt_that_goes_another_way_is_evaluated_from_there() -> None:
    with running(ScriptedBackend(replies({"hello ": "world", "help!": "coming"}))) as engine:
        ask(engine, "hello ")
        [reply] = ask(engine, "help!")
    assert (reply.text, reply.cached) == ("coming", 3)


def test_a_slot_that_refuses_to_forget_is_evaluated_again() -> None:
    script = {"hello ": "world", "hello world, ": "who are you?", "help!": "coming"}
    with running(ScriptedBackend(replies(script), can_trim=False, slots=2)) as engine:
        [one], [two], [three] = ask(engine, "hello "), ask(engine, "hello world, "), ask(engine, "help!")
    assert [one.text, two.text, three.text] == ["world", "who are you?", "coming"]
    assert [one.cached, two.cached, three.cached] == [0, len("hello world"), 0]


def test_a_model_that_cannot_forget_gives_its_samples_the_prompt_read_once() -> None:
    backend = ScriptedBackend(GREETING, can_trim=False, slots=3)
    with running(backend) as engine:
        said = ask(engine, "hello ", n=3)
    assert [reply.text for reply in said] == ["world"] * 3
    assert backend.evaluated == 6 + 3 * len("world")


def test_a_long_prompt_is_read_in_batches_and_tells_how_far_it_is() -> None:
    prompt = "x" * 40
    with running(ScriptedBackend(replies({prompt: "y", "x" * 41: "z"}))) as engine:
        for asked, told in ((prompt, [0, 16, 32]), ("x" * 41, [40])):
            events = list(engine.generate([Request(tokens(asked))]))
            progress = [event for event in events if isinstance(event, PromptEvent)]
            assert [event.evaluated for event in progress] == told
            assert {event.total for event in progress} == {len(asked)}
            assert events[: len(progress)] == progress


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    with running(ScriptedBackend(replies({"?": "one STOP two"}))) as engine:
        [reply] = ask(engine, "?", stop=("STOP", "###"))
    assert (reply.text, reply.reason) == ("one ", "stop")
    assert reply.pieces == ["o", "n", "e", " ", "", "", "", ""]
    assert bytes(reply.ids) == b"one STOP"


def test_text_that_only_looks_like_a_stop_string_is_shown() -> None:
    with running(ScriptedBackend(replies({"?": "STO! STO"}))) as engine:
        [reply] = ask(engine, "?", stop=("STOP",))
        [cut_off] = ask(engine, "?", stop=("STOP",), max_tokens=3)
    assert reply.pieces == ["", "", "", "STO!", " ", "", "", "", "STO"]
    assert (cut_off.text, cut_off.reason) == ("STO", "length")


def test_characters_are_never_split() -> None:
    with running(ScriptedBackend(replies({"?": "a🙂é", "!": b"\xf0\x9f\xff", "-": b"a\xf0\x9f"}))) as engine:
        [emoji], [invalid], [incomplete] = ask(engine, "?"), ask(engine, "!"), ask(engine, "-")
    assert emoji.pieces == ["a", "", "", "", "🙂", "", "é"]
    assert (invalid.text, incomplete.text) == ("��", "a�")


def test_a_token_may_stand_for_many_bytes_and_what_follows_a_stop_string_in_it_is_dropped() -> None:
    word = FIRST_WORD
    with running(ScriptedBackend(replies({"?": (word, word)}), words=(b"yes. STOP\xf0\x9f",))) as engine:
        [reply] = ask(engine, "?", stop=("STOP",))
    assert (reply.text, reply.ids, reply.reason) == ("yes. ", [word], "stop")


def test_control_tokens_are_silent_unless_the_caller_wants_to_read_them() -> None:
    with running(ScriptedBackend(replies({"?": (MARK, *b"a")}))) as engine:
        [silent] = ask(engine, "?")
        visible = engine.backend.special_token_ids(["<mark>"])
        [spelled] = gathered(engine.generate([Request(tokens("?"), visible_tokens=visible)])).values()
    assert (silent.text, spelled.text) == ("a", "<mark>a")
    assert silent.ids == spelled.ids == [MARK, ord("a")]


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_no_more_tokens_are_said_than_were_asked_for(limit: int) -> None:
    with running(ScriptedBackend(GREETING)) as engine:
        [reply] = ask(engine, "hello ", max_tokens=limit)
    assert (reply.text, reply.reason) == ("world"[:limit], "length")


def test_a_reply_that_ends_with_its_last_token_but_one_has_stopped_by_itself() -> None:
    with running(ScriptedBackend(GREETING)) as engine:
        [reply] = ask(engine, "hello ", max_tokens=6)
    assert (reply.text, reply.reason) == ("world", "stop")


def test_a_full_context_ends_the_reply() -> None:
    with running(ScriptedBackend(replies({"12345": "x" * 99}), context_size=8)) as engine:
        [reply], [longest] = ask(engine, "12345"), ask(engine, "12345", max_tokens=50)
    assert (reply.text, reply.reason) == ("xxx", "context") == (longest.text, longest.reason)
    assert reply.finish and reply.finish.context_size == 8


def seeded(held: tuple[int, ...], seed: int) -> int:
    """Say the seed's digits for ever."""
    digits = str(seed)
    return ord(digits[(len(held) - 1) % len(digits)])


def test_samples_take_the_seeds_that_follow_the_first_and_a_seed_says_the_same_again() -> None:
    with running(ScriptedBackend(seeded, slots=2)) as engine:
        said = ask(engine, "?", n=3, seed=41, max_tokens=4)
        [again] = ask(engine, "?", seed=43, max_tokens=4)
    assert [(reply.seed, reply.text) for reply in said] == [(41, "4141"), (42, "4242"), (43, "4343")]
    assert again.text == said[2].text


def test_without_a_seed_each_request_draws_one_that_repeats_it() -> None:
    with running(ScriptedBackend(seeded)) as engine:
        drawn = [ask(engine, "?", max_tokens=10)[0] for _ in range(3)]
        again = [ask(engine, "?", max_tokens=10, seed=reply.seed)[0] for reply in drawn]
    assert len({reply.seed for reply in drawn}) == 3
    assert all(0 <= reply.seed < SEEDS for reply in drawn)
    assert [reply.text for reply in drawn] == [reply.text for reply in again]


def test_seeds_count_round_before_the_one_that_means_draw_your_own() -> None:
    with running(ScriptedBackend(seeded)) as engine:
        assert [reply.seed for reply in ask(engine, "?", n=2, seed=SEEDS - 1, max_tokens=1)] == [SEEDS - 1, 0]


def test_many_requests_share_a_few_slots_and_each_gets_its_own_reply() -> None:
    script = {f"question {number}: ": f"answer {number}" * (number % 4) for number in range(9)}
    with running(ScriptedBackend(replies(script), slots=3)) as engine:
        said = gathered(engine.generate([Request(tokens(prompt)) for prompt in script]))
    assert [said[SequenceId(index)].text for index in range(9)] == list(script.values())
    assert all(reply.reason == "stop" for reply in said.values())
    assert all(said[SequenceId(index)].cached >= len("question ") for index in range(1, 9))


def test_two_streams_run_side_by_side() -> None:
    backend = ScriptedBackend(replies({"a": "1" * 20, "b": "2" * 20}), slots=2)
    with running(backend) as engine:
        one, two = engine.generate([Request(tokens("a"))]), engine.generate([Request(tokens("b"))])
        texts = {"a": "", "b": ""}
        for first, second in zip(one, two, strict=True):
            for name, event in (("a", first), ("b", second)):
                texts[name] += event.text if isinstance(event, TokenEvent) else ""
    assert texts == {"a": "1" * 20, "b": "2" * 20}


def test_memory_grows_only_when_nothing_runs_in_it() -> None:
    backend = ScriptedBackend(replies({"short": "a" * 30, "long": "b" * 80}), slots=2)
    with running(backend) as engine:
        small = engine.generate([Request(tokens("short"), SamplingParams(max_tokens=30))])
        next(small)
        assert backend.capacity == 35
        [large] = ask(engine, "long", max_tokens=80)
        [first] = gathered(small).values()
        [again] = ask(engine, "short", max_tokens=2)
    assert (first.text, large.text, again.text) == ("a" * 30, "b" * 80, "aa")
    assert (backend.capacity, again.cached) == (84, 0)


def test_memory_that_cannot_be_had_is_an_error_and_smaller_requests_still_work() -> None:
    backend = ScriptedBackend(GREETING, fits=20)
    with running(backend) as engine:
        for _ in range(2):
            with pytest.raises(EngineError, match="no memory"):
                ask(engine, "hello ", max_tokens=50)
            assert ask(engine, "hello ", max_tokens=9)[0].text == "world"


def test_the_clock_tells_reading_from_talking() -> None:
    with running(ScriptedBackend(GREETING)) as engine:
        first, second = ask(engine, "hello ")[0].finish, ask(engine, "hello ")[0].finish
    assert first and second
    assert (first.timings.prefill_tokens, first.timings.decode_steps) == (6, 5)
    assert (second.timings.prefill_tokens, second.timings.decode_steps) == (1, 5)
    assert 0 < first.timings.prefill_s <= first.timings.ttft_s
    assert first.timings.decode_s > 0 and first.timings.tokens_per_second > 0
    assert first.timings.load_s == second.timings.load_s >= 0
