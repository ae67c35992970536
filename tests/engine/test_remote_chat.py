"""A chat on a server: the next prompt extends the generated ids, or their text where ids are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from chats import contents, finish, make_chat, text
from scripted_backend import END, FIRST_WORD, ScriptedBackend, tokens
from server_kinds import LlamaServer

from cerebrum_cli.chat.chat import Chat
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.errors import EndpointError, UsageError
from cerebrum_cli.core.events import FinishEvent
from cerebrum_cli.engine.remote.client import Endpoint

YES = FIRST_WORD
WORDS = (b" Yes", " é".encode()[:2], "🙂".encode()[:2])
REPLIES = {
    "One?": (YES, *tokens(".")),
    "Two?": (YES, FIRST_WORD + 1, 0xA9),  # the server's stream drops the id of a part of a character
    "Long?": (YES, *tokens(", of course, and then some")),
}


def model(held: tuple[int, ...], seed: int) -> int:
    """Answer the last question of a prompt."""
    data = bytes(each if each < 256 else 0 for each in held)
    start = data.rindex(b"\nAI:") + len(b"\nAI:")
    question = data[data.rindex(b"User: ", 0, start) + len(b"User: ") : start - len(b"\nAI:")].decode()
    generated = len(held) - start
    reply = REPLIES[question]
    return reply[generated] if generated < len(reply) else END


@pytest.fixture
def server() -> Iterator[LlamaServer]:
    """A server whose model generates words of several bytes."""
    with LlamaServer(model, context_size=500, vocabulary=ScriptedBackend(model, words=WORDS)) as server:
        yield server


@pytest.fixture
def chat(store: Store, tmp_path: Path, chatml_model: Path, server: LlamaServer) -> Iterator[Chat]:
    """A chat on this server."""
    vocabulary = ScriptedBackend(model, words=WORDS)
    endpoints = (Endpoint(server.url, server.url),)
    with closing(make_chat(store, tmp_path, chatml_model, lambda: vocabulary, endpoints)) as chat:
        yield chat


def prompts(server: LlamaServer) -> list[tuple[int, ...]]:
    return [asked.prompt for asked in server.completions()]


def test_remote_chat_extends_the_generated_ids(chat: Chat, server: LlamaServer) -> None:
    assert text(chat.send("One?")) == "Yes."
    second = finish(chat.send("Long?"))
    first, next_ = prompts(server)
    assert next_[: len(first) + 2] == (*first, *REPLIES["One?"])
    assert second.cached_tokens == len(first) + 2
    assert chat.undo() == "Long?"
    assert finish(chat.send("Long?")).cached_tokens >= len(first) + 2
    assert finish(chat.retry()).cached_tokens == len(next_) - 1
    assert prompts(server)[1:] == [next_] * 3


def test_remote_chat_saves_a_reply_without_all_ids_as_text(chat: Chat, server: LlamaServer) -> None:
    assert text(chat.send("Two?")) == "Yes é"
    assert chat.last_reply and chat.last_reply.message.tokens is None
    assert text(chat.send("One?")) == "Yes."
    first, second = prompts(server)
    assert second[: len(first) + 7] == (*first, *tokens(" Yes é"))
    assert contents(chat) == ["Two?", "Yes é", "One?", "Yes."]


def test_remote_chat_continues_a_truncated_reply(chat: Chat, server: LlamaServer) -> None:
    list(chat.change_settings({"max_tokens": 2}))
    assert text(chat.send("Long?")) == "Yes,"
    list(chat.change_settings({"max_tokens": 6}))
    assert text(chat.continue_reply()) == " of co"
    first, second = prompts(server)
    assert second == (*first, *REPLIES["Long?"][:2])


def test_remote_chat_cancelled_reply_is_saved(chat: Chat, server: LlamaServer) -> None:
    def add_cached(at: int, part: dict[str, Any]) -> dict[str, Any]:
        progress = part.get("prompt_progress")
        return {**part, "prompt_progress": {**progress, "cache": 7}} if progress else part

    stuck = server.arm(edit=add_cached, hang_after=8)
    generated = ""
    for event in chat.send("Long?"):
        generated += getattr(event, "text", "")
        if generated == "Yes,":
            assert stuck.is_hanging.wait(10)
            chat.loaded.cancel()
    server.wait_for(lambda: server.completions()[0].is_left)
    assert isinstance(event, FinishEvent) and (event.reason, event.cached_tokens) == ("cancelled", 7)
    assert chat.last_reply and chat.last_reply.metadata.finish_reason == "cancelled"
    assert contents(chat)[1] == generated and ", of course".startswith(generated[3:])


def test_remote_chat_refuses_settings_of_a_local_model(chat: Chat) -> None:
    list(chat.load())
    for setting in ({"ctx": 100}, {"threads": 2}, {"cache_gb": 1.0}):
        with pytest.raises(UsageError, match="cannot be set: the model runs on a server"):
            list(chat.change_settings(setting))
    assert text(chat.send("One?")) == "Yes."


@pytest.mark.slow
def test_remote_chat_continues_after_a_lost_reply(chat: Chat, server: LlamaServer) -> None:
    list(chat.load())
    server.arm(reset_after=6)
    with pytest.raises(EndpointError, match="connection lost"):
        list(chat.send("Long?"))
    assert text(chat.send("One?")) == "Yes."
