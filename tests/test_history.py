"""Conversations that are kept: in a session of their own, or in the one they go on from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cerebrum_cli.application.chat.history import Author, History, continue_session, load_conversation, suggest_name
from cerebrum_cli.application.inference.reply import Reply, ReplyCollector
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.events import FinishEvent, SequenceId, Timings, TokenEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.sessions.lock import SessionLock
from cerebrum_cli.sessions.rows import ReplyMetadata
from cerebrum_cli.sessions.store import Store

ONLY = SequenceId(0)
TIMINGS = Timings(load_s=1.0, prefill_s=0.5, ttft_s=0.75, decode_s=0.3, prefill_tokens=16, decode_steps=1)
FINISH = FinishEvent(
    sequence=ONLY,
    reason="stop",
    prompt_tokens=20,
    cached_tokens=4,
    completion_tokens=2,
    seed=2**32 - 2,
    context_size=256,
    timings=TIMINGS,
)
FOUR = Reply("Four.", "2 and 2", FINISH, (7, 8))
SIX = Reply("Six.", None, FINISH, (9,))
SPEAKER = Author("owner/repo:Q4_0", "chatml")
SETTINGS = Settings(temperature=0.5, max_tokens=10, stop=("\n\n",))
PARAMS = {
    "temperature": 0.5,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
    "max_tokens": 10,
    "stop": ["\n\n"],
}
SUM = Conversation(system_prompt="Be brief.").user("What is 2 + 2? Think.")


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with contextlib.closing(Store(tmp_path / "sessions.db")) as store:
        yield History(store, SessionLock(tmp_path / "locks"))


def test_an_exchange_is_kept_as_a_session_named_after_its_first_words(history: History) -> None:
    session = history.record(None, SUM, FOUR, SPEAKER, SETTINGS)
    assert (session.name, session.origin) == ("what-is-2-2-think", "ask")
    found = history.get(session.name)
    assert found == session
    assert (found.system_prompt, found.model, found.format, found.params) == (
        "Be brief.",
        "owner/repo:Q4_0",
        "chatml",
        PARAMS,
    )
    assert history.store.conversation(found) == SUM.assistant("Four.", (7, 8))


def test_what_is_kept_of_a_reply_says_how_it_came_to_be(history: History) -> None:
    question, reply = history.store.messages(history.record(None, SUM, FOUR, SPEAKER, SETTINGS))
    assert question.metadata == ReplyMetadata()
    assert reply.metadata == ReplyMetadata(
        reasoning="2 and 2",
        finish_reason="stop",
        model="owner/repo:Q4_0",
        format="chatml",
        params=PARAMS,
        seed=2**32 - 2,
        timings={**asdict(TIMINGS), "prompt_tokens": 20, "cached_tokens": 4},
    )


def test_the_same_question_again_is_another_session(history: History) -> None:
    names = [history.record(None, SUM, FOUR, SPEAKER, SETTINGS).name for _ in range(3)]
    assert names == ["what-is-2-2-think", "what-is-2-2-think-2", "what-is-2-2-think-3"]


def test_a_session_that_is_gone_on_from_gets_only_what_is_new(history: History) -> None:
    first = history.record(None, SUM, FOUR, SPEAKER, SETTINGS)
    whole = continue_session(
        history.store, history.acquire_latest(), SPEAKER.model, Conversation().user("And 3 + 3?"), None
    )
    session = history.record(history.acquire_latest(), whole, SIX, SPEAKER, SETTINGS)
    assert (session.id, session.name) == (first.id, first.name)
    assert history.store.conversation(session) == whole.assistant("Six.", (9,))
    assert [summary.messages for summary in history.store.summaries()] == [4]
    assert history.store.messages(session)[:2] == history.store.messages(first)


def test_a_conversation_that_was_given_whole_is_kept_whole(history: History) -> None:
    whole = SUM.assistant("Four.").user("And 3 + 3?")
    session = history.record(None, whole, SIX, SPEAKER, SETTINGS, "chat")
    assert history.store.conversation(session) == whole.assistant("Six.", (9,))
    assert (session.name, session.origin) == ("what-is-2-2-think", "chat")


def test_an_exchange_is_kept_whole_or_not_at_all(history: History) -> None:
    unkept = replace(FOUR, finish=replace(FINISH, seed=2**70))
    with pytest.raises(OverflowError):
        history.record(None, SUM, unkept, SPEAKER, SETTINGS)
    assert (history.store.summaries(), history.store.children(None)) == ([], [])


def test_a_question_nobody_answered_has_an_empty_reply_that_was_interrupted(history: History) -> None:
    answered = history.record(None, SUM, FOUR, SPEAKER, SETTINGS)
    history.store.add_message(answered, Message("user", "And 3 + 3?"))
    session = history.acquire_latest()
    whole = SUM.assistant("Four.", (7, 8)).user("And 3 + 3?").assistant("")
    assert history.store.conversation(session) == whole
    assert history.store.messages(session)[-1].metadata == ReplyMetadata(finish_reason="cancelled")


def test_a_session_that_has_come_to_a_reply_stays_where_it_is(history: History) -> None:
    session = history.record(None, SUM, FOUR, SPEAKER, SETTINGS)
    assert history.close_unanswered(session) == session
    empty = history.store.create("empty", "chat")
    assert history.close_unanswered(empty) == empty


def test_a_session_is_reached_by_its_name_and_begun_by_a_good_one(history: History) -> None:
    session = history.record(None, SUM, FOUR, SPEAKER, SETTINGS)
    assert history.acquire_named(session.name) == session
    assert history.acquire_named("tea") is None
    for name in ("", " tea", "a\nb"):
        with pytest.raises(SessionError):
            history.acquire_named(name)


def test_the_latest_session_is_the_one_last_changed(history: History) -> None:
    older, newer = history.store.create("older", "chat"), history.store.create("newer", "chat")
    assert history.acquire_latest() == newer
    changed = history.store.add_message(
        history.store.add_message(older, Message("user", "a")), Message("assistant", "b")
    )
    assert history.acquire_latest() == changed


def test_a_session_that_is_not_there_is_a_session_error(history: History) -> None:
    with pytest.raises(SessionError) as nothing:
        history.acquire_latest()
    assert (nothing.value.message, nothing.value.hint) == ("there is no session to go on from", "ask without -c first")
    with pytest.raises(SessionError) as unknown:
        history.get("sums")
    assert (unknown.value.message, unknown.value.hint) == (
        "there is no session sums",
        "cerebrum sessions list shows them",
    )


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("What is 2+2?", "what-is-2-2"),
        ("Tell me, in one word or more: why?", "tell-me-in-one-word"),
        ("  ÄRGER im Café \n\n", "ärger-im-café"),
        ("日本の首都はどこですか？", "日本の首都はどこですか"),
        ("你好。 世界", "你好-世界"),
        ("日" * 100, "日" * 40),
        ("A" * 100, "a" * 40),
        ("a" * 39 + " b", "a" * 39),
        (("ab" * 9 + " ") * 5, "-".join(["ab" * 9] * 2) + "-ab"),
        ("__init__", "init"),
        ("?!... -- ___", "session"),
        ("😀", "session"),
        (" \n\t", "session"),
        ("", "session"),
        ("/tmp/long.txt:\n```txt\nover and over\n```\n\nWho runs here?", "who-runs-here"),
        ("a.md:\n````md\n```\nx\n```\n````\n\nb.py:\n```py\ny\n```\n\nWhy y?", "why-y"),
        ("notes.txt:\n```txt\nCats sleep.\n```", "notes-txt-txt-cats-sleep"),
    ],
)
def test_a_session_is_named_after_the_first_words(question: str, name: str) -> None:
    assert suggest_name(Conversation(system_prompt="You are brief.").user(question).assistant("Yes.")) == name


def test_a_session_in_which_nothing_is_said_has_a_name_too() -> None:
    assert suggest_name(Conversation()) == "session"


@pytest.mark.parametrize(
    ("own", "given", "prompt"),
    [("own", None, "own"), (None, None, None), ("own", "now", "now"), (None, "now", "now"), ("own", "", "")],
)
def test_a_system_prompt_given_now_replaces_the_sessions_own(
    history: History, own: str | None, given: str | None, prompt: str | None
) -> None:
    session = history.record(None, replace(SUM, system_prompt=own), FOUR, SPEAKER, SETTINGS)
    asked = Conversation(system_prompt="of the settings").user("And 3 + 3?")
    whole = continue_session(history.store, session, SPEAKER.model, asked, given)
    assert whole == replace(SUM, system_prompt=prompt).assistant("Four.", (7, 8)).user("And 3 + 3?")


def test_a_session_is_kept_with_the_system_prompt_its_last_reply_was_made_with(history: History) -> None:
    session = history.record(None, SUM, FOUR, SPEAKER, SETTINGS)
    whole = continue_session(history.store, session, SPEAKER.model, Conversation().user("And 3 + 3?"), "Rhyme.")
    history.record(session, whole, SIX, SPEAKER, SETTINGS)
    assert history.store.conversation(history.acquire_latest()) == whole.assistant("Six.", (9,))


def test_a_thought_that_came_to_no_answer_is_not_gone_on_with(history: History) -> None:
    """Its markup is open: whatever follows would be thought too."""
    cut = Reply("", "2 and", replace(FINISH, reason="cancelled"), (7,))
    session = history.record(None, SUM, cut, SPEAKER, SETTINGS)
    assert load_conversation(history.store, session, SPEAKER.model) == SUM.assistant("")
    assert history.store.messages(session)[-1].message.tokens == (7,)


def gathered(by_stop_string: bool) -> Reply:
    gatherer = ReplyCollector()
    for event in (
        TokenEvent(ONLY, "hm", "thinking", 5),
        TokenEvent(ONLY, "Fo", "answer", 6),
        TokenEvent(ONLY, "", "answer", 7),
        TokenEvent(ONLY, "ur", "answer"),
        replace(FINISH, by_stop_string=by_stop_string),
    ):
        gatherer.emit(event)
    assert gatherer.reply is not None
    return gatherer.reply


def test_the_tokens_of_a_reply_are_all_that_were_sampled() -> None:
    assert (gathered(False).text, gathered(False).tokens) == ("Four", (5, 6, 7))


def test_a_reply_that_a_stop_string_ended_is_kept_without_its_tokens(history: History) -> None:
    reply = gathered(True)
    assert (reply.tokens, reply.sampled) == (None, (5, 6, 7))
    session = history.record(None, SUM, reply, SPEAKER, SETTINGS)
    assert history.store.conversation(session) == SUM.assistant("Four")
