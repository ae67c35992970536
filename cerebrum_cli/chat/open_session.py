"""The session of a chat, and the moves through its tree of messages."""

from __future__ import annotations

from dataclasses import dataclass, field

from cerebrum_cli.chat.history import History
from cerebrum_cli.chat.session import Messages, Session, StoredMessage, validated_name
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.errors import SessionError


@dataclass(slots=True)
class OpenSession:
    """A session that this process has locked; `session` is None until the first question, which gives it the `name`."""

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

    def require_question(self) -> StoredMessage:
        for stored in reversed(self.messages):
            if stored.message.role == "user":
                return stored
        raise SessionError("no question yet", "ask something first")

    def require_reply(self) -> StoredMessage:
        if last := self.last_reply:
            return last
        raise SessionError("no reply yet", "ask something first")

    def undo(self) -> str:
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

    @property
    def replies(self) -> Messages:
        """All replies to the last question, and to its other versions, oldest first. Raises SessionError."""
        return self.history.store.replies(self.require_question())

    def choose_reply(self, reply: StoredMessage) -> None:
        self._move(reply.id)

    def replace_reply(self, reply: str) -> None:
        self._move(self.require_reply().parent, Message("assistant", reply))

    def rename(self, name: str) -> None:
        """Rename the session, or name the one to be created. Raises SessionError if the name is in use."""
        if self.session:
            self.session = self.history.store.update_session(self.session, name=name)
        elif self.history.store.find(validated_name(name)):
            raise SessionError(f"session {name!r} already exists", "choose another name")
        self.name = name

    def _move(self, leaf: int | None, message: Message | None = None) -> int | None:
        """Move the session to another branch, add a message to it, and return the previous leaf."""
        assert self.session
        previous_leaf = self.session.leaf
        self.session = self.history.store.move(self.session, leaf)
        if message:
            self.session = self.history.store.add_message(self.session, message)
        return previous_leaf
