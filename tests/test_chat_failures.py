"""Whatever goes wrong in a chat, the conversation stays one that can be gone on with."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chats import Loadable, contents, finish, make_chat, text
from scripted_backend import FIRST_WORD, ScriptedBackend, endless, replies

from cerebrum_cli.application.chat.chat import Chat
from cerebrum_cli.core.errors import EngineError, PromptTooLong, SessionError
from cerebrum_cli.core.events import Event, TokenEvent
from cerebrum_cli.engine.backend import Backend, StopFlag
from cerebrum_cli.sessions.store import Store

ONE = "S\nUser: One?\nAI:"
TWO = f"{ONE} First.\nUser: Two?\nAI:"
SCRIPT = {ONE: " First.", TWO: " Second.", "S\nUser: Two?\nAI:": " Other.", f"{ONE} \nUser: Two?\nAI:": " Third."}


class Broken:
    """A model that cannot be loaded."""

    def open(self, tell: Callable[[Event], None], stop: StopFlag) -> Backend:
        raise EngineError("loading was interrupted")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr("cerebrum_cli.sessions.store.BUSY_TIMEOUT_S", 0.05)
    with contextlib.closing(Store(tmp_path / "sessions.db")) as opened:
        yield opened


@pytest.fixture
def sit(store: Store, tmp_path: Path, chatml_model: Path) -> Iterator[Callable[..., Chat]]:
    """Return how to begin a chat whose model is opened as each of these in turn, the last one ever after."""
    chats: list[Chat] = []

    def begin(*backends: Callable[[], Loadable]) -> Chat:
        waiting = list(backends)
        chats.append(
            make_chat(store, tmp_path, chatml_model, lambda: (waiting.pop(0) if len(waiting) > 1 else waiting[0])())
        )
        return chats[-1]

    yield begin
    for chat in chats:
        chat.close()


def good() -> ScriptedBackend:
    return ScriptedBackend(replies(SCRIPT), context_size=200)


def test_a_model_whose_loading_failed_is_loaded_again_for_the_next_question(sit: Callable[..., Chat]) -> None:
    chat = sit(Broken, good)
    with pytest.raises(EngineError, match="loading was interrupted"):
        list(chat.send("One?"))
    assert chat.session is None
    assert text(chat.send("One?")) == "First."
    assert contents(chat) == ["One?", "First."]


def test_a_question_that_cannot_be_answered_is_no_turn(sit: Callable[..., Chat]) -> None:
    chat = sit(good, Broken, Broken, good)
    list(chat.send("One?"))
    with pytest.raises(EngineError):
        list(chat.change_settings({"ctx": 100}))
    with pytest.raises(EngineError):
        list(chat.send("Two?"))
    assert contents(chat) == ["One?", "First."]
    assert text(chat.send("Two?")) == "Second."
    assert contents(chat) == ["One?", "First.", "Two?", "Second."]


def test_a_change_that_fails_leaves_a_model_that_answers(sit: Callable[..., Chat]) -> None:
    chat = sit(good, Broken, good)
    list(chat.send("One?"))
    with pytest.raises(EngineError):
        list(chat.change_settings({"model": "large", "ctx": 100}))
    assert chat.author.model == "small"
    assert text(chat.send("Two?")) == "Second."


def test_a_change_that_is_interrupted_leaves_a_model_that_answers(sit: Callable[..., Chat]) -> None:
    from cerebrum_cli.core.events import LoadEvent

    chat = sit(good, lambda: ScriptedBackend(replies(SCRIPT), load_events=(LoadEvent(0.5),)), good)
    list(chat.send("One?"))
    change = chat.change_settings({"model": "large", "ctx": 100})
    next(change)
    change.close()
    assert chat.author.model == "small"
    assert text(chat.send("Two?")) == "Second."


def test_a_reply_that_cannot_be_kept_is_no_turn_of_the_next_prompt(sit: Callable[..., Chat], tmp_path: Path) -> None:
    chat = sit(good)
    list(chat.send("One?"))
    with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as other:
        events = chat.send("Two?")
        with pytest.raises(SessionError):
            for event in events:
                if isinstance(event, TokenEvent) and not other.in_transaction:
                    other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    assert contents(chat) == ["One?", "First."]
    assert text(chat.send("Two?")) == "Second."


def test_a_first_question_that_does_not_fit_leaves_no_session(sit: Callable[..., Chat], store: Store) -> None:
    chat = sit(good)
    chat.rename("mine")
    with pytest.raises(PromptTooLong):
        list(chat.send("x" * 300))
    assert store.summaries() == []
    assert text(chat.send("One?")) == "First."
    assert [summary.session.name for summary in store.summaries()] == ["mine"]


def test_another_wording_that_does_not_fit_leaves_the_turn_as_it_was(sit: Callable[..., Chat]) -> None:
    chat = sit(good)
    list(chat.send("One?"))
    with pytest.raises(PromptTooLong):
        list(chat.edit_question("x" * 300))
    assert contents(chat) == ["One?", "First."]
    assert text(chat.edit_question("Two?")) == "Other."
    assert contents(chat) == ["Two?", "Other."]


def test_a_name_that_somebody_else_has_taken_meanwhile_is_told_of(sit: Callable[..., Chat], store: Store) -> None:
    chat = sit(good)
    chat.rename("tea")
    store.create("tea", "chat")
    with pytest.raises(SessionError, match="there is a session tea already"):
        list(chat.send("One?"))
    assert chat.session is None


PARROTS = "🦜🦜"
BYTES = {ONE: f" {PARROTS}", f"{ONE} {PARROTS}\nUser: Two?\nAI:": " Yes."}


def test_a_reply_cut_within_a_character_goes_on_with_all_of_it(sit: Callable[..., Chat]) -> None:
    chat = sit(lambda: ScriptedBackend(endless(BYTES), context_size=200))
    list(chat.change_settings({"max_tokens": 3}))
    list(chat.send("One?"))
    assert chat.last_reply
    assert chat.last_reply.message.content == "\ufffd"
    list(chat.change_settings({"max_tokens": 5}))
    list(chat.continue_reply())
    assert chat.last_reply.message.content == "🦜\ufffd"
    list(chat.change_settings({"max_tokens": 8}))
    list(chat.continue_reply())
    list(chat.continue_reply())
    content = chat.last_reply.message.content
    assert content.startswith("🦜🦜 🦜🦜")
    assert "\ufffd" not in content[:-1]
    assert bytes(chat.last_reply.message.tokens or ()).decode("utf-8", "ignore").startswith(" 🦜🦜 🦜🦜")


def test_tokens_of_several_characters_are_whole(sit: Callable[..., Chat]) -> None:
    words = ("🦜".encode()[:2], "🦜".encode()[2:], "ab🦜".encode()[:-1])
    backend = ScriptedBackend(replies(SCRIPT), context_size=200, words=words)
    chat = sit(lambda: backend)
    list(chat.load())
    whole = chat.loaded.responder.drop_partial_character
    half, rest, cut = FIRST_WORD, FIRST_WORD + 1, FIRST_WORD + 2
    assert whole((97, half, rest)) == (97, half, rest)
    assert whole((97, half)) == (97,)
    assert whole((97, cut)) == (97,)
    assert whole((0xFF, 0x80)) == (0xFF, 0x80)
    assert whole(()) == whole((half,)) == ()


def test_a_session_knows_who_spoke_last_in_it(sit: Callable[..., Chat], store: Store) -> None:
    first = sit(good)
    list(first.send("One?"))
    first.close()
    second = sit(good)
    list(second.change_settings({"model": "large", "ctx": 100, "temperature": 0.5}))
    second.switch_session(store.latest())
    assert text(second.send("Two?")) == "Second."
    session = store.latest()
    assert session
    assert (session.model, session.params["temperature"]) == ("large", 0.5)


def test_nothing_is_kept_once_it_is_not_to_be(sit: Callable[..., Chat], tmp_path: Path) -> None:
    chat = sit(lambda: ScriptedBackend(replies({f"S\nUser: {'x' * 80}\nAI:": " Yes."}), context_size=200))
    list(chat.change_settings({"cache_gb": 0}))
    list(chat.send("x" * 80))
    assert chat.close() is None
    assert not list(tmp_path.glob("states/*"))


def test_what_was_dropped_comes_back_in_a_larger_context(store: Store, tmp_path: Path, chatml_model: Path) -> None:
    question = "x" * 60
    turn = f"User: {question}\nAI:"
    script = {
        (one := f"S\n{turn}"): " 1.",
        (two := f"{one} 1.\n{turn}"): " 2.",
        f"{two} 2.\nUser: More?\nAI:": " whole.",
        f"S\n{turn} 2.\nUser: More?\nAI:": " cut.",
        f"S\n{turn} 2.\nUser: More?\nAI: cut.\nUser: And?\nAI:": " still cut.",
        f"{two} 2.\nUser: More?\nAI: cut.\nUser: And?\nAI:": " whole again.",
    }
    sizes = [175, 600]
    chat = make_chat(store, tmp_path, chatml_model, lambda: ScriptedBackend(replies(script), context_size=sizes.pop(0)))
    for asked in (question, question, "More?"):
        last = text(chat.send(asked))
    assert (last, chat.dropped_count) == ("cut.", 2)
    list(chat.change_settings({"ctx": 600}))
    again = list(chat.send("And?"))
    assert text(again) == "whole again."
    assert chat.dropped_count == 0
    assert finish(again).prompt_tokens > 175
    chat.close()
