"""Export of sessions to files: atomic, and transcripts exactly as the model sees them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from cerebrum_cli.chat.archive import export_to_file
from cerebrum_cli.chat.rows import ReplyMetadata, Session
from cerebrum_cli.chat.store import Store
from cerebrum_cli.cli.app import llama_opener
from cerebrum_cli.core.conversation import Message, Text
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import fold
from cerebrum_cli.inference.loading import LoadedModel, open_model
from cerebrum_cli.models.model import Model

FIRST_PROMPT = "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
SECOND_PROMPT = "<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n"
OWN, OTHER = ReplyMetadata(model="small", finish_reason="stop"), ReplyMetadata(model="other", finish_reason="stop")


@pytest.fixture
def loaded(tmp_path: Path, chatml_model: Path) -> Iterator[LoadedModel]:
    """The small model, with only its vocabulary loaded."""
    small = open_model(
        lambda options: llama_opener(options, tmp_path / "devices.json"),
        Model("small", (chatml_model,)),
        fold({}),
        vocabulary_only=True,
    )
    list(small.responder.load())
    yield small
    small.engine.close()


def create_session(store: Store, *turns: tuple[Message, ReplyMetadata]) -> Session:
    session = store.create("talk", "chat", model="small")
    for number, (reply, metadata) in enumerate(turns):
        session = store.add_message(session, Message("user", ("One?", "Two?", "Three?")[number]))
        session = store.add_message(session, reply, metadata)
    return session


def transcript(store: Store, session: Session, loaded: LoadedModel) -> str:
    path = store._path.parent / "talk.txt"
    export_to_file(path, store, session, loaded)
    return path.read_text()


def test_transcript_tokenizes_another_models_reply_again(store: Store, loaded: LoadedModel) -> None:
    second = Message("assistant", "Second.", loaded.engine.vocabulary.tokenize((Text("Second."),)))
    session = create_session(store, (Message("assistant", "First.", (31999, 7)), OTHER), (second, OWN))
    assert transcript(store, session, loaded) == f"{FIRST_PROMPT}First.{SECOND_PROMPT}Second.\n"


def test_transcript_tokenizes_another_models_last_reply_again(store: Store, loaded: LoadedModel) -> None:
    session = create_session(store, (Message("assistant", "First.", (31999, 7)), OTHER))
    assert transcript(store, session, loaded) == f"{FIRST_PROMPT}First.\n"


def test_transcript_starts_at_the_first_message_in_the_context(store: Store, loaded: LoadedModel) -> None:
    session = create_session(store, (Message("assistant", "First."), OWN), (Message("assistant", "Second."), OWN))
    session = store.update_session(session, first=store.messages(session)[2].id)
    assert transcript(store, session, loaded) == f"{FIRST_PROMPT.replace('One', 'Two')}Second.\n"


def test_transcript_includes_reasoning_without_an_answer(store: Store, loaded: LoadedModel) -> None:
    tokens = loaded.engine.vocabulary.tokenize((Text("<think>", True), Text("hm")))
    metadata = ReplyMetadata(reasoning="hm", model=loaded.model.reference, vocabulary=loaded.model.vocabulary)
    session = create_session(store, (Message("assistant", "", tokens), metadata))
    assert transcript(store, session, loaded) == f"{FIRST_PROMPT}<think>hm\n"


def test_export_leaves_no_partial_file(store: Store, loaded: LoadedModel, tmp_path: Path) -> None:
    session = create_session(store, (Message("assistant", "word " * 10_000), OWN))
    path = tmp_path / "talk.md"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # as if the disk were full
    try:
        with pytest.raises(UsageError, match=r"talk\.md: File too large"):
            export_to_file(path, store, session, loaded)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()
    export_to_file(path, store, session, loaded)
    assert path.read_text().endswith("word word\n")
    with pytest.raises(UsageError, match="already exists"):
        export_to_file(path, store, session, loaded)
    assert path.exists()
