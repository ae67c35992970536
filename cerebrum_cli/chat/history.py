"""A user's saved sessions: one is locked and continued, all can be listed, searched, exported and deleted."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.chat.model_messages import (
    conversation_of,
    reply_metadata,
    session_params,
    visible_messages,
)
from cerebrum_cli.chat.session import (
    Messages,
    Origin,
    ReplyMetadata,
    Session,
    suggest_name,
    validated_name,
    without_files,
)
from cerebrum_cli.chat.store import OR_UNSAVED, Store, check_integrity
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.declaration import LORA
from cerebrum_cli.core.errors import SessionError, UsageError
from cerebrum_cli.core.files import atomic_write, is_file, lock_file, remove, translate_os_errors
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.text import Match, did_you_mean, format_utc, one_line
from cerebrum_cli.engine.local import clear_prompt_cache
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Reply

if TYPE_CHECKING:
    from cerebrum_cli.chat.archive import ArchivedSession

UNITS_S = {"d": 86_400, "w": 604_800}
_AROUND = '" \n'  # a question, and text that the prompt takes as several lines
_TYPED = re.compile(r"\n# [^\n]*\n((?:\+[^\n]*\n)+)")  # a question in the prompt's history, after its time


@dataclass(slots=True)
class History:
    """A user's sessions; this process locks at most one, by an empty file in `locks`.

    A lock keeps other processes from writing to the session, and ends with its process. Without `locks`, the sessions
    are in memory only.
    """

    store: Store
    locks: Path | None
    _held: tuple[Path, FileIO] | None = None

    @classmethod
    def at(cls, path: Path | None) -> History:
        """The sessions in a database, which is opened on first use; without a path, new ones in memory."""
        return cls(Store(path), path and path.with_name("locks"))

    def check_integrity(self) -> tuple[int, int] | None:
        """Numbers of sessions and messages in the database; None without one. Raises SessionError."""
        return check_integrity(self.store.path) if self.store.path else None

    def acquire_named(self, name: str | None) -> Session | None:
        """Lock a session by its name, None if there is none; without a name, the latest.

        Raises SessionError if the name is invalid, there is no latest session, or another process holds it.
        """
        session = self.store.latest() if name is None else self.store.find(validated_name(name))
        if session is None and name is None:
            raise SessionError("no session to continue", "ask without -c first")
        return self.acquire(session) if session else None

    def acquire(self, session: Session) -> Session:
        """Lock a session, for a question to follow. Raises SessionError if another process holds it.

        If it ends in a question, because its process was killed, an empty interrupted reply is appended.
        """
        self.lock(session)
        messages = self.store.messages(session)
        if messages and messages[-1].message.role == "user":
            return self.store.add_message(session, Message("assistant", ""), ReplyMetadata(finish_reason="cancelled"))
        return session

    def lock(self, session: Session) -> None:
        """Lock a session and release the previous one. Raises SessionError if another process holds the lock."""
        if self.locks is None:
            return
        path = self.locks / f"{session.id}.lock"
        if self._held and self._held[0] == path:
            return
        busy = SessionError(
            f"session {session.name!r} is open in another process", "close it there, or use another session"
        )
        with translate_os_errors(SessionError, path, f", {OR_UNSAVED}"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = lock_file(path, busy, mode=0o600, is_required=False)
        self.release()
        self._held = path, file

    def release(self, removes: bool = False) -> None:
        """Free the locked session, if there is one; the lock's file is removed only with a deleted session."""
        if self._held:
            path, file = self._held
            if removes:
                remove(path)
            file.close()
            self._held = None

    def get(self, name: str, hint: str = "list sessions with cerebrum sessions list") -> Session:
        session = self.store.find(name)
        if session is None:
            similar = did_you_mean(name, self.store.names(), 3, 0.7).rstrip()
            raise UsageError(f"no session named {name!r}", similar or hint)
        return session

    def close(self) -> None:
        self.release()
        self.store.close()

    def record(
        self,
        session: Session | None,
        conversation: Conversation,
        reply: Reply,
        loaded: Model,
        settings: Settings,
        name: str | None = None,
        for_script: bool = False,
    ) -> Session:
        """Save the new messages of a conversation and its reply; without a session, create one, by its `name` if given.

        Without a FinishEvent, the reply was interrupted. If another process has taken the name meanwhile, a number is
        appended to it.
        """
        model = loaded.model
        params = session_params(settings, model)
        values: JsonDict = {
            "system_prompt": conversation.system_prompt,
            "model": model.reference,
            "format": loaded.format_setting,
        }
        known: Messages = []
        with self.store.transaction():
            if session is None:
                origin: Origin = "script" if for_script and not name else "ask"
                name = self.store.unused_name(name) if name else self.unused_name(conversation)
                session = self.store.create(name, origin, params=params, **values)
            else:
                kept = {key: value for key, value in session.params.items() if key != LORA}
                session = self.store.update_session(session, params=kept | model.adapter_params, **values)
                known = visible_messages(session, self.store.messages(session))
            for message in conversation.messages[len(known) :]:
                session = self.store.add_message(session, message)
            metadata = reply_metadata(reply, loaded, params)
            return self.store.add_message(session, reply.message, metadata)

    def unused_name(self, conversation: Conversation) -> str:
        """A name for a session that begins with a conversation."""
        name = suggest_name(conversation)
        if self.store.find(name) is None:
            return name
        return self.store.unused_name(f"{name}-{date.today().isoformat()}")

    def conversation(self, session: Session, model: InstalledModel) -> Conversation:
        """What a model sees of a session."""
        return conversation_of(session, self.store.messages(session), model)

    def prepend(
        self, session: Session, model: InstalledModel, conversation: Conversation, system_prompt: str | None
    ) -> Conversation:
        """What a model sees of a session, then the messages of a conversation, and the system prompt if it is given."""
        earlier = self.conversation(session, model)
        prompt = earlier.system_prompt if system_prompt is None else system_prompt
        return replace(conversation, messages=(*earlier.messages, *conversation.messages), system_prompt=prompt)

    @property
    def rows(self) -> list[JsonDict]:
        """The rows of `sessions list`, the session that was changed last first."""
        rows = []
        for session, messages, first in self.store.summaries():
            rows.append({**session.fields, "messages": messages, "first": without_files(first)})
        return rows

    def search(self, text: str) -> list[JsonDict]:
        """The rows of `sessions search`, the latest message first."""
        rows = []
        for session, stored, excerpt in self.store.search(text):
            fields = {"session": session.name, "role": stored.message.role, "created": format_utc(stored.created)}
            rows.append({**fields, "excerpt": one_line(excerpt)})
        return rows

    def archived(self, session: Session) -> ArchivedSession:
        """A session to be shown or exported, without undone, edited and retried messages."""
        from cerebrum_cli.chat.archive import ArchivedSession

        return ArchivedSession(session, self.store.messages(session))

    def older_than(self, age: str) -> list[Session]:
        """Sessions that have not changed for an age such as 30d or 8w. Raises UsageError."""
        match = re.fullmatch(r"(\d+)([dw])", age)
        if match is None:
            raise UsageError.invalid("--older-than", age, "days or weeks, such as 30d or 8w")
        limit = time.time() - float(match[1]) * UNITS_S[match[2]]  # infinity for a long number
        return [summary.session for summary in self.store.summaries() if summary.session.updated < limit]

    def delete(self, sessions: Sequence[Session], states: Path, typed: Path) -> Iterator[tuple[Session, int]]:
        """Erase sessions and every trace of their messages; yield each with the number of those deleted.

        `states` is the directory of the prompt cache, which holds prompts and replies of any session and is emptied;
        `typed` is the file with the prompt's history. Raises SessionError for a session that is open in another
        process; those before it are erased.
        """
        before = self.store.questions()
        try:
            for session in sessions:
                self.lock(session)
                count = self.store.remove(session)
                self.release(removes=True)
                yield session, count
        finally:
            forget_questions(typed, before - self.store.questions())
            clear_prompt_cache(states)
            self.store.vacuum()


def forget_questions(path: Path, questions: Collection[str]) -> None:
    """Remove questions from the input history (prompt_toolkit's file format)."""
    gone = [question.strip(_AROUND) for question in questions]

    def without(entry: Match) -> str:
        text = entry[1].replace("\n+", "\n")[1:-1]
        typed = text.strip(_AROUND)
        words = [typed]
        if typed.startswith("/file "):  # a question may follow the names of files
            words += [typed[space.end() :] for space in re.finditer(r"\s+", typed)]
        if any(f"\n{question}".endswith(f"\n{ending}") for question in gone for ending in words if ending):
            return ""
        return entry[0]

    if is_file(path):
        text = path.read_bytes().decode(errors="surrogateescape")
        kept = _TYPED.sub(without, text)
        if kept != text:
            atomic_write(path, kept.encode(errors="surrogateescape"))
