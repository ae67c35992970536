"""The messages of an open session, and the moves through them: undo, redo, and other questions and replies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from cerebrum_cli.chat.history import History
from cerebrum_cli.chat.session import Messages, ReplyMetadata, Session, StoredMessage, validated_name
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import SessionError


@dataclass(slots=True)
class MessageTree:
    """The messages of a session that this process has locked.

    `session` is None until the first question, which gives it the `name`.
    """

    history: History
    session: Session | None = None
    name: str | None = None
    _undone: list[tuple[int | None, int | None]] = field(default_factory=list, init=False)  # leaves after and before

    @property
    def is_saved(self) -> bool:
        return self.history.locks is not None

    @property
    def messages(self) -> Messages:
        return self.history.store.messages(self.session) if self.session else []

    @property
    def last_reply(self) -> StoredMessage | None:
        """The last reply; None if the last message is a question."""
        messages = self.messages
        return messages[-1] if messages and messages[-1].message.role == "assistant" else None

    def require_session(self) -> Session:
        if self.session:
            return self.session
        raise SessionError("the conversation is empty", "ask something first")

    def require_question(self) -> StoredMessage:
        for stored in reversed(self.messages):
            if stored.message.role == "user":
                return stored
        raise SessionError("no question yet", "ask something first")

    def require_reply(self) -> StoredMessage:
        if last := self.last_reply:
            return last
        raise SessionError("no reply yet", "ask something first")

    def ask(self, question: Message, values: dict[str, Any]) -> int | None:
        """Add a question, and return the previous leaf; `values` are columns of a session that is created for it.

        A session is created with its first question in one step: a killed process leaves no empty session.
        """
        store = self.history.store
        if self.session:
            previous_leaf = self.session.leaf
            self.session = store.add_message(self.session, question)
            return previous_leaf
        with store.transaction():  # no other process takes its name, or sees it before it is locked
            name = self.name or self.history.unused_name(Conversation((question,)))
            session = store.create(name, "chat", question=question, **values)
            self.history.lock(session)
        self.session = session
        return None

    def ask_instead(self, text: str) -> int | None:
        """Replace the text of the last question, with the same pictures; return the previous leaf."""
        question = self.require_question()
        return self._move(question.parent, replace(question.message, content=text))

    def retry(self) -> int | None:
        """Move back to the last question, and return the previous leaf."""
        return self._move(self.require_question().id)

    def return_to(self, leaf: int | None) -> None:
        """Move back to a leaf after a failure: in memory at least if the database cannot be written."""
        assert self.session
        try:
            self._move(leaf)
        except SessionError:
            self.session = replace(self.session, leaf=leaf)

    def add_reply(self, reply: Message, metadata: ReplyMetadata) -> None:
        assert self.session
        self.session = self.history.store.add_message(self.session, reply, metadata)

    def update_reply(self, reply: Message, metadata: ReplyMetadata) -> None:
        assert self.session
        self.history.store.update_message(self.session, reply, metadata)

    def replace_reply(self, text: str) -> None:
        self._move(self.require_reply().parent, Message("assistant", text))

    def undo(self) -> str:
        """Undo the last turn, and return its question. Raises SessionError."""
        question = self.require_question()
        self._undone.append((question.parent, self._move(question.parent)))
        return question.message.content

    def redo(self) -> str:
        """Restore the turn that was undone last, and return its question. Raises SessionError.

        After an earlier run of the program, it is the newest turn that the session has after this one.
        """
        leaf = self.session.leaf if self.session else None
        if self._undone and self._undone[-1][0] == leaf:
            self._move(self._undone.pop()[1])
        elif turn := self.history.store.undone(self.session)[:2] if self.session else []:
            self._move(turn[-1].id)
        else:
            raise SessionError("nothing to redo", "only turns that /undo removed can be restored")
        return self.require_question().message.content

    def rename(self, name: str) -> None:
        """Rename the session, or name the one to be created. Raises SessionError if the name is in use."""
        if self.session:
            self.session = self.history.store.update_session(self.session, name=name)
        elif self.history.store.find(validated_name(name)):
            raise SessionError(f"session {name!r} already exists", "choose another name")
        self.name = name

    def update(self, **values: Any) -> None:
        """Change columns of the session, if it is created and they differ."""
        session = self.session
        if session and any(getattr(session, key) != value for key, value in values.items()):
            self.session = self.history.store.update_session(session, **values)

    def open(self, session: Session | None, name: str | None = None) -> None:
        """Open another session, with None one that the next question creates. Raises SessionError if it is locked."""
        if session:
            session = self.history.acquire(session)
        else:
            self.history.release()
        self.session, self.name = session, name
        self._undone = []

    def remove_empty(self) -> None:
        """Remove the session if it has no messages, since its first question was not answered."""
        if self.session and self.session.leaf is None:
            self.history.store.remove(self.session)
            self.open(None, self.name)

    def _move(self, leaf: int | None, message: Message | None = None) -> int | None:
        """Move the session to another branch, add a message to it, and return the previous leaf."""
        assert self.session
        previous_leaf = self.session.leaf
        self.session = self.history.store.move(self.session, leaf)
        if message:
            self.session = self.history.store.add_message(self.session, message)
        return previous_leaf
