"""A session is written to a file whole or not at all, and a transcript is what this one model has read and said."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from cerebrum_cli.application.chat.archive import export_to_file
from cerebrum_cli.application.inference.loading import LoadedModel, open_model
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.parts import Text
from cerebrum_cli.core.settings import fold
from cerebrum_cli.runtime.composition import llama_opener
from cerebrum_cli.sessions.rows import ReplyMetadata, Session
from cerebrum_cli.sessions.store import Store

ONE = "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
TWO = "<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
MINE, THEIRS = ReplyMetadata(model="small", finish_reason="stop"), ReplyMetadata(model="other", finish_reason="stop")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(tmp_path / "sessions.db")) as opened:
        yield opened


@pytest.fixture
def opened(tmp_path: Path, chatml_model: Path) -> Iterator[LoadedModel]:
    """Return the small model, of which no more is loaded than its vocabulary."""
    small = open_model(
        lambda options: llama_opener(options, tmp_path / "devices.json"),
        Model("small", (chatml_model,)),
        fold({}),
        vocabulary_only=True,
    )
    list(small.responder.load())
    yield small
    small.engine.close()


def talk(store: Store, *turns: tuple[Message, ReplyMetadata]) -> Session:
    session = store.create("talk", "chat", model="small")
    for number, (reply, said) in enumerate(turns):
        session = store.add_message(session, Message("user", ("One?", "Two?", "Three?")[number]))
        session = store.add_message(session, reply, said)
    return session


def transcript(store: Store, session: Session, opened: LoadedModel) -> str:
    path = store._path.parent / "talk.txt"
    export_to_file(path, store, session, opened)
    return path.read_text()


def test_another_models_tokens_are_read_as_text(store: Store, opened: LoadedModel) -> None:
    second = Message("assistant", "Second.", opened.engine.tokenize((Text("Second."),)))
    session = talk(store, (Message("assistant", "First.", (31999, 7)), THEIRS), (second, MINE))
    assert transcript(store, session, opened) == f"{ONE}First.{TWO}Second.\n"


def test_the_last_reply_of_another_model_is_read_as_text(store: Store, opened: LoadedModel) -> None:
    session = talk(store, (Message("assistant", "First.", (31999, 7)), THEIRS))
    assert transcript(store, session, opened) == f"{ONE}First.\n"


def test_a_transcript_begins_where_the_model_does(store: Store, opened: LoadedModel) -> None:
    session = talk(store, (Message("assistant", "First."), MINE), (Message("assistant", "Second."), MINE))
    session = store.update_session(session, first=store.messages(session)[2].id)
    assert transcript(store, session, opened) == f"{ONE.replace('One', 'Two')}Second.\n"


def test_a_thought_that_came_to_no_answer_was_said_all_the_same(store: Store, opened: LoadedModel) -> None:
    tokens = opened.engine.tokenize((Text("<think>", True), Text("hm")))
    session = talk(store, (Message("assistant", "", tokens), ReplyMetadata(reasoning="hm", model="small")))
    assert transcript(store, session, opened) == f"{ONE}<think>hm\n"


def test_a_file_that_cannot_be_written_whole_is_not_left_in_part(
    store: Store, opened: LoadedModel, tmp_path: Path
) -> None:
    session = talk(store, (Message("assistant", "word " * 10_000), MINE))
    path = tmp_path / "talk.md"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # where a disk would be full
    try:
        with pytest.raises(UsageError, match=r"talk\.md: File too large"):
            export_to_file(path, store, session, opened)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()
    export_to_file(path, store, session, opened)
    assert path.read_text().endswith("word word\n")
    with pytest.raises(UsageError, match="is there already"):
        export_to_file(path, store, session, opened)
    assert path.exists()
