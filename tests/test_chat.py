"""A chat moves through its session's tree, keeps every turn as it goes, and evaluates nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chats import contents, finish, make_chat, text
from scripted_backend import ScriptedBackend, endless, replies

from cerebrum_cli.application.chat.chat import Chat
from cerebrum_cli.application.chat.history import with_session_defaults
from cerebrum_cli.core.errors import ModelNotFound, PromptTooLong, SessionError, UsageError
from cerebrum_cli.core.events import NoticeEvent, TokenEvent
from cerebrum_cli.sessions.store import Store

ONE = "S\nUser: One?\nAI:"
TWO = f"{ONE} First.\nUser: Two?\nAI:"
SCRIPT = {ONE: " First.", TWO: " Second.", f"{TWO} Second.\nUser: Three?\nAI:": " Third."}
LONG = {ONE: " and so on"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "sessions.db")
    yield store
    store.close()


@pytest.fixture
def chat(store: Store, tmp_path: Path, chatml_model: Path) -> Iterator[Chat]:
    """Return a chat with a model that has its replies by heart."""
    yield from talking(store, tmp_path, chatml_model, lambda: ScriptedBackend(replies(SCRIPT), context_size=500))


@pytest.fixture
def endless_chat(store: Store, tmp_path: Path, chatml_model: Path) -> Iterator[Chat]:
    """Return a chat with a model that never ends by itself."""
    yield from talking(store, tmp_path, chatml_model, lambda: ScriptedBackend(endless(LONG), context_size=500))


def talking(store: Store, home: Path, file: Path, backend: Callable[[], ScriptedBackend]) -> Iterator[Chat]:
    chat = make_chat(store, home, file, backend)
    yield chat
    chat.close()


def test_each_turn_reads_only_what_is_new(chat: Chat) -> None:
    assert text(chat.send("One?")) == "First."
    second = finish(chat.send("Two?"))
    assert second.cached_tokens == len(f"{ONE} First.")
    assert finish(chat.send("Three?")).prompt_tokens == len(f"{TWO} Second.\nUser: Three?\nAI:")
    assert contents(chat) == ["One?", "First.", "Two?", "Second.", "Three?", "Third."]


def test_a_turn_is_kept_with_how_it_came_to_be(chat: Chat, store: Store) -> None:
    list(chat.send("One?"))
    session = store.find("one")
    assert session
    assert (session.origin, session.model, session.format, session.system_prompt) == ("chat", "small", "cerebrum", "S")
    question, reply = store.messages(session)
    assert (question.message.role, reply.parent) == ("user", question.id)
    assert reply.message.tokens == tuple(b" First.")
    assert (reply.metadata.finish_reason, reply.metadata.model, reply.metadata.format) == ("stop", "small", "cerebrum")


def test_what_is_taken_back_is_not_evaluated_again_and_stays_in_the_tree(chat: Chat, store: Store) -> None:
    list(chat.send("One?"))
    list(chat.send("Two?"))
    assert chat.undo() == "Two?"
    assert contents(chat) == ["One?", "First."]
    assert finish(chat.send("Two?")).cached_tokens >= len(f"{ONE} First.")
    assert len(store.children(chat.messages[1].id)) == 2
    assert chat.undo() == "Two?"
    assert chat.undo() == "One?"
    assert chat.undo() is None
    assert chat.conversation.messages == ()


def test_a_reply_is_tried_again_beside_the_one_there_was(chat: Chat, store: Store) -> None:
    list(chat.send("One?"))
    before = chat.last_reply
    again = list(chat.retry(replace(chat.settings, temperature=0.5)))
    assert text(again) == "First."
    assert finish(again).cached_tokens == len(ONE) - 1  # the last token of a prompt is always evaluated
    assert before
    assert [each.metadata.params and each.metadata.params["temperature"] for each in store.children(before.parent)] == [
        0,
        0.5,
    ]
    with pytest.raises(SessionError, match="there is no question to answer"):
        chat.undo()
        list(chat.retry())


def test_a_cut_reply_is_gone_on_with_where_it_ended(endless_chat: Chat) -> None:
    chat = endless_chat
    chat.settings = replace(chat.settings, max_tokens=4)
    assert text(chat.send("One?")) == "and"
    assert chat.last_reply
    assert chat.last_reply.message.tokens == tuple(b" and")
    chat.settings = replace(chat.settings, max_tokens=6)
    assert text(chat.continue_reply()) == " so on"
    assert chat.last_reply.message.content == "and so on"
    assert chat.last_reply.message.tokens == tuple(b" and so on")
    assert contents(chat) == ["One?", "and so on"]


def test_only_a_cut_reply_can_be_gone_on_with(chat: Chat) -> None:
    with pytest.raises(SessionError, match="there is no reply to go on with"):
        list(chat.continue_reply())
    list(chat.send("One?"))
    with pytest.raises(SessionError, match="has ended by itself"):
        list(chat.continue_reply())
    assert contents(chat) == ["One?", "First."]


def test_a_reply_that_is_closed_early_is_kept_as_far_as_it_came(endless_chat: Chat, store: Store) -> None:
    events = endless_chat.send("One?")
    for event in events:
        if isinstance(event, TokenEvent) and event.token == ord("d"):
            break
    events.close()
    assert contents(endless_chat) == ["One?", "and"]
    assert endless_chat.last_reply
    assert endless_chat.last_reply.metadata.finish_reason == "cancelled"


def test_a_question_closed_before_the_first_word_has_an_empty_answer(endless_chat: Chat) -> None:
    events = endless_chat.send("One?")
    next(events)
    events.close()
    assert contents(endless_chat) == ["One?", ""]


def test_what_was_said_is_there_while_it_is_said(
    endless_chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerebrum_cli.application.chat.reply_recorder.SAVE_EVERY_S", 0.0)
    events = endless_chat.send("One?")
    for event in events:
        if isinstance(event, TokenEvent) and event.token == ord("o"):
            other = Store(tmp_path / "sessions.db")
            session = other.find("one")
            assert session
            assert other.messages(session)[-1].message.content == "and so"
            assert other.messages(session)[-1].metadata.finish_reason is None
            other.close()
            break
    events.close()
    assert contents(endless_chat) == ["One?", "and so"]


def test_a_question_that_does_not_fit_is_taken_back(chat: Chat) -> None:
    list(chat.send("One?"))
    with pytest.raises(PromptTooLong):
        list(chat.send("x" * 500))
    assert contents(chat) == ["One?", "First."]
    assert text(chat.send("Two?")) == "Second."


def test_a_fork_goes_on_alone(chat: Chat, store: Store) -> None:
    with pytest.raises(SessionError, match="nothing has been said yet"):
        chat.fork()
    list(chat.send("One?"))
    assert chat.fork("other").name == "other"
    list(chat.send("Two?"))
    first = store.find("one")
    assert first
    assert [stored.message.content for stored in store.messages(first)] == ["One?", "First."]
    assert contents(chat) == ["One?", "First.", "Two?", "Second."]


def test_another_system_prompt_leads_from_now_on(chat: Chat, store: Store) -> None:
    chat.set_system_prompt("T")
    assert chat.conversation.system_prompt == "T"
    chat.set_system_prompt("S")
    list(chat.send("One?"))
    chat.set_system_prompt("T")
    session = store.find("one")
    assert session
    assert session.system_prompt == chat.conversation.system_prompt == "T"


# A conversation longer than the context.


X, Y, Z = (letter * 80 for letter in "xyz")
COUNTED = {
    (ASKED_X := f"S\nUser: {X}\nAI:"): " First.",
    f"{ASKED_X} First.\nUser: {Y}\nAI:": " Second.",
    (ASKED_Z := f"S\nUser: {Y}\nAI: Second.\nUser: {Z}\nAI:"): " Third.",
    f"{ASKED_Z} Third.\nUser: And?\nAI:": " Fourth.",
    f"{ASKED_X} First.\nUser: Well?\nAI:": " Fifth.",
}


@pytest.fixture
def small_chat(store: Store, tmp_path: Path, chatml_model: Path) -> Iterator[Chat]:
    """Return a chat whose context holds two turns of the three it is asked."""
    yield from talking(store, tmp_path, chatml_model, lambda: ScriptedBackend(replies(COUNTED), context_size=250))


def test_the_oldest_turns_are_dropped_with_a_notice_and_stay_in_the_session(small_chat: Chat) -> None:
    chat = small_chat
    list(chat.send(X))
    list(chat.send(Y))
    events = list(chat.send(Z))
    [notice] = [event for event in events if isinstance(event, NoticeEvent)]
    assert "no longer reads the 2 oldest messages" in notice.message
    assert text(events) == "Third."
    assert contents(chat) == [X, "First.", Y, "Second.", Z, "Third."]
    assert [message.content for message in chat.conversation.messages] == [Y, "Second.", Z, "Third."]
    after = list(chat.send("And?"))
    assert finish(after).cached_tokens == len(f"{ASKED_Z} Third.")
    assert not [event for event in after if isinstance(event, NoticeEvent)]


def test_what_was_dropped_is_back_when_there_is_room_again(small_chat: Chat) -> None:
    chat = small_chat
    for question in (X, Y, Z):
        list(chat.send(question))
    chat.undo()
    assert [message.content for message in chat.conversation.messages] == [Y, "Second."]
    chat.undo()
    assert [message.content for message in chat.conversation.messages] == [X, "First."]
    assert text(chat.send("Well?")) == "Fifth."


def test_a_chat_that_may_not_drop_anything_stops(small_chat: Chat) -> None:
    chat = small_chat
    list(chat.change_settings({"overflow": "stop"}))
    list(chat.send(X))
    list(chat.send(Y))
    with pytest.raises(PromptTooLong):
        list(chat.send(Z))
    assert contents(chat) == [X, "First.", Y, "Second."]


def test_the_gauge_counts_what_the_model_would_read(small_chat: Chat) -> None:
    chat = small_chat
    assert chat.context_usage in (None, (len("S\nAI:"), 250))
    list(chat.loaded.responder.load())
    assert chat.context_usage == (len("S\nAI:"), 250)
    list(chat.send(X))
    assert chat.context_usage == (len(f"{ASKED_X} First.\nAI:"), 250)
    chat.undo()
    assert chat.context_usage == (len("S\nAI:"), 250)


# Other settings, another model, another session.


def test_a_setting_holds_from_now_on_and_is_as_usual_again(chat: Chat) -> None:
    assert list(chat.change_settings({"temperature": 0.5})) == []
    assert chat.settings.temperature == 0.5
    list(chat.change_settings({"max_tokens": 3}))
    assert (chat.settings.temperature, chat.settings.max_tokens) == (0.5, 3)
    list(chat.change_settings({"temperature": None}))
    assert (chat.settings.temperature, chat.settings.max_tokens) == (0.0, 3)
    with pytest.raises(UsageError, match="--top-p is 2"):
        list(chat.change_settings({"top_p": 2}))
    assert text(chat.send("One?")) == "Fi"


def test_a_chat_goes_on_with_its_settings_and_a_question_did_not(chat: Chat, store: Store) -> None:
    list(chat.send("One?"))
    list(chat.change_settings({"temperature": 0.5}))
    session = store.latest()
    assert session
    again = with_session_defaults(session, {"top_k": 5})
    assert (again["temperature"], again["top_k"], again["model"], again["format"]) == (0.5, 5, "small", "cerebrum")
    assert with_session_defaults(session, {"temperature": 0.9})["temperature"] == 0.9
    assert with_session_defaults(session, {"model": "large"}) == {"model": "large"}
    assert with_session_defaults(replace(session, origin="ask"), {}) == {"model": "small", "format": "cerebrum"}


def test_another_model_goes_on_with_the_conversation(chat: Chat, store: Store) -> None:
    list(chat.send("One?"))
    before = chat.loaded
    list(chat.change_settings({"model": "large", "ctx": 400}))
    assert chat.loaded is not before
    assert text(chat.send("Two?")) == "Second."
    session = store.find("one")
    assert session
    assert (session.model, chat.author.model) == ("large", "large")
    assert [stored.metadata.model for stored in chat.messages[1::2]] == ["small", "large"]


def test_a_model_that_cannot_be_had_leaves_the_chat_as_it_is(chat: Chat) -> None:
    before = chat.loaded
    with pytest.raises(ModelNotFound):
        list(chat.change_settings({"model": "missing"}))
    assert chat.loaded is before
    assert text(chat.send("One?")) == "First."


def test_what_was_read_is_read_no_more_by_the_next_chat(store: Store, tmp_path: Path, chatml_model: Path) -> None:
    question = "x" * 80
    script = {f"S\nUser: {question}\nAI:": " First.", f"S\nUser: {question}\nAI: First.\nUser: Two?\nAI:": " Second."}
    first = make_chat(store, tmp_path, chatml_model, lambda: ScriptedBackend(replies(script), context_size=500))
    list(first.send(question))
    assert first.close() is None
    second = make_chat(store, tmp_path, chatml_model, lambda: ScriptedBackend(replies(script), context_size=500))
    second.switch_session(store.latest())
    again = list(second.send("Two?"))
    assert text(again) == "Second."
    assert finish(again).cached_tokens == len(f"S\nUser: {question}\nAI: First.")
    assert second.close() is None


def test_a_session_that_another_chat_leads_is_not_entered(
    chat: Chat, store: Store, tmp_path: Path, chatml_model: Path
) -> None:
    list(chat.send("One?"))
    other = make_chat(store, tmp_path, chatml_model, lambda: ScriptedBackend(replies(SCRIPT), context_size=500))
    with pytest.raises(SessionError, match="is open in another process"):
        other.switch_session(store.latest())
    assert other.session is None
    chat.fork("free")
    other.switch_session(store.find("one"))
    assert text(other.send("Two?")) == "Second."
    other.close()


def test_a_reply_in_the_users_own_words_is_gone_on_from(chat: Chat, store: Store) -> None:
    list(chat.send("One?"))
    chat.replace_reply("First.")
    assert contents(chat) == ["One?", "First."]
    assert chat.last_reply
    assert chat.last_reply.message.tokens is None
    assert len(store.children(chat.messages[0].id)) == 2
    assert text(chat.send("Two?")) == "Second."


def test_a_session_is_called_otherwise_before_and_after_it_begins(chat: Chat, store: Store) -> None:
    chat.rename("mine")
    list(chat.send("One?"))
    assert store.find("mine")
    chat.rename("ours")
    assert [summary.session.name for summary in store.summaries()] == ["ours"]
    chat.switch_session(None)
    with pytest.raises(SessionError, match="there is a session ours already"):
        chat.rename("ours")


def test_going_on_that_does_not_fit_leaves_the_reply_as_it_is(endless_chat: Chat) -> None:
    chat = endless_chat
    assert text(chat.send("One?")).startswith("and so on")
    before = contents(chat)
    with pytest.raises(PromptTooLong):
        list(chat.continue_reply())
    assert contents(chat) == before
