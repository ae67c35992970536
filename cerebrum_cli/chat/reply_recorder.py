"""Make room in the context for a reply, and save it: now and then while it is generated, and when it finishes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

from cerebrum_cli.chat.message_tree import MessageTree
from cerebrum_cli.chat.model_messages import (
    begin_after,
    conversation_of,
    forced_tokens,
    reply_metadata,
    session_params,
    visible_messages,
)
from cerebrum_cli.chat.session import Messages, StoredMessage
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import Interrupted, SessionError
from cerebrum_cli.core.events import ContinueEvent, Events, NoticeEvent
from cerebrum_cli.core.settings import Settings, reply_room
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Reply

INTERRUPTIONS = (Interrupted, GeneratorExit, KeyboardInterrupt)
SAVE_EVERY_S = 1.0  # a killed process loses at most this much of a reply
SAVE_SHARE = 0.02  # or, of a long one, this part: the whole text is written each time


def save_interval(elapsed_s: float) -> float:
    """Seconds until a reply is saved again, so that the bytes written grow little faster than its length."""
    return max(SAVE_EVERY_S, elapsed_s * SAVE_SHARE)


@dataclass(slots=True)
class ReplyRecorder:
    """The reply to the last question of a session; it may continue the reply `continued`, or begin with `prefill`."""

    tree: MessageTree
    loaded: Model
    settings: Settings
    continued: StoredMessage | None = None
    prefill: Message | None = None
    tools: Tools = ()
    reply: Reply = field(default_factory=Reply)
    _is_stored: bool = False
    _messages: Messages = field(init=False)  # up to the question: later, a part of the reply may be stored

    def __post_init__(self) -> None:
        self._messages = self.tree.messages

    def events(self) -> Events:
        """Yield the events of the reply, and save it now and then. Raises SessionError."""
        if notice := self._make_room():
            yield notice
        assert self.tree.session
        conversation = replace(self._conversation(self.tree.session.first), prefill=self.prefill)
        request = Ask(conversation, self.settings, prefix_tokens=self._continued_tokens, tools=self.tools)
        self.reply = self.loaded.respond(request)
        if self.continued:
            begin_after(self.reply, self.continued.message, forced_tokens(self.continued.metadata))
            yield ContinueEvent(self.continued.message.content)
        start = time.monotonic()
        next_save = start + save_interval(0.0)
        with closing(self.reply.events()) as events:
            for event in events:
                now = time.monotonic()
                if self._has_output and now >= next_save:
                    next_save = now + save_interval(now - start)
                    with suppress(SessionError):  # generation continues; it is saved at the end
                        self._save(None)
                yield event
        self._save("cancelled")

    def end_early(self, error: BaseException, previous_leaf: int | None) -> None:
        """Save an interrupted reply, even if empty; after an error without a reply, remove the question.

        One that was to continue another, and got nothing further, leaves that in place.
        """
        continues = self.continued or self.prefill
        is_kept = self._has_output or (isinstance(error, INTERRUPTIONS) and not continues)
        if is_kept and not isinstance(error, SessionError):
            with suppress(SessionError):
                self._save("cancelled")
                return
        self.tree.return_to(previous_leaf)

    def _conversation(self, first: int | None) -> Conversation:
        """What the model sees of the session, from the message with this id on."""
        assert self.tree.session
        session = replace(self.tree.session, first=first)
        conversation = conversation_of(session, self._messages, self.loaded.model)
        return self.settings.applied_to(conversation, self.tools)

    def _make_room(self) -> NoticeEvent | None:
        """Enlarge the context for the reply if that is possible, or drop the oldest half of the turns before it.

        Turns that were dropped earlier are restored if all fit. Return a notice if further ones are dropped. Raises
        SessionError if a reply to continue fills the context.
        """
        loaded, session = self.loaded, self.tree.session
        assert session
        conversation, visible = self._conversation(session.first), visible_messages(session, self._messages)
        loaded.make_room(self._count(conversation), self.settings)
        size = loaded.engine.context_size
        longest = max(len(stored.message.tokens or ()) for stored in self._messages)
        limit = size - reply_room(size, self.settings.max_tokens, longest)
        if session.first and self._count(self._conversation(None)) <= limit:
            self.tree.update(first=None)
            return None
        dropped = messages_to_drop(conversation, self._count, limit, size)
        if self.continued and self._count(drop_oldest(conversation, dropped)) >= size:
            self._enlarge_for_reply()
        if not dropped:
            return None
        self.tree.update(first=visible[dropped].id)
        hint = (
            "the session keeps them" if loaded.is_remote else "the session keeps them; /set ctx N makes room for more"
        )
        return NoticeEvent(f"the context of {size} tokens is full: dropped the {dropped} oldest messages from it", hint)

    def _enlarge_for_reply(self) -> None:
        """Enlarge the context for a reply that fills it alone, unless its size was chosen. Raises SessionError."""
        loaded = self.loaded
        size = loaded.engine.context_size
        if loaded.source.settings.ctx:
            raise SessionError(f"the reply fills the context of {size} tokens", "/set ctx N makes room for more")
        if not loaded.is_remote and size < loaded.model.trained_context:
            loaded.grow(min(2 * size, loaded.model.trained_context))
        if loaded.engine.context_size <= size:
            problem = f"the reply fills the context of {size} tokens, the largest for this model and free memory"
            raise SessionError(problem, "limit reasoning with /think N, then /retry")

    def _count(self, conversation: Conversation) -> int:
        """Tokens of a conversation's prompt, and of the reply that is continued."""
        return self.loaded.prompts.count(conversation) + len(self._continued_tokens)

    @property
    def _has_output(self) -> bool:
        """Whether something was generated; some servers send text without tokens."""
        if not self.reply.sampled:
            return self.reply.has_text
        return len(self.reply.sampled) > len(self._continued_tokens)

    @property
    def _continued_tokens(self) -> TokenIds:
        return (self.continued and self.continued.message.tokens) or ()

    def _save(self, unfinished: str | None) -> None:
        """Save the reply so far; `unfinished` is its reason to finish until it has one of its own."""
        metadata = reply_metadata(self.reply, self.loaded, session_params(self.settings, self.loaded.model), unfinished)
        if self._is_stored:
            self.tree.update_reply(self.reply.message, metadata)
        else:
            self.tree.add_reply(self.reply.message, metadata)
            self._is_stored = True


def messages_to_drop(conversation: Conversation, count: Callable[[Conversation], int], limit: int, size: int) -> int:
    """Number of messages to drop before a reply: the oldest half of the turns until a prompt has `limit` tokens.

    A turn is a question with its reply; the system prompt and the last question stay. 0 if all fit, and if even the
    last question fills the context, whose `size` is in tokens, as `count` counts those of a conversation's prompt.
    """
    dropped, turns = 0, (len(conversation.messages) - 1) // 2
    tokens = count(conversation)
    while tokens > limit and turns:
        half = (turns + 1) // 2
        dropped += 2 * half
        turns -= half
        tokens = count(drop_oldest(conversation, dropped))
    return dropped if tokens < size else 0


def drop_oldest(conversation: Conversation, messages: int) -> Conversation:
    return replace(conversation, messages=conversation.messages[messages:])
