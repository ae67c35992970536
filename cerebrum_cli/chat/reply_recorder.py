"""Make room in the context for a reply, and save it: now and then while it is generated, and when it finishes."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace

from cerebrum_cli.chat.model_view import calls_of, conversation_of, visible_messages
from cerebrum_cli.chat.reply_params import begin_after, forced_tokens, reply_metadata, session_params
from cerebrum_cli.chat.session import Messages, Session, StoredMessage
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import Interrupted, SessionError
from cerebrum_cli.core.events import Event, Events, FinishEvent, ForcedTokens, NoticeEvent, with_notices_behind
from cerebrum_cli.core.settings import Settings, reply_room
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import Tools
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import MajorityVote, Reply

INTERRUPTIONS = (Interrupted, GeneratorExit, KeyboardInterrupt)
RESTORE_BELOW = 0.25  # of the context: dropping turns for this context size leaves more
DROP_FRACTION = 4  # drop 1/4 of the context or more together: the rest is evaluated again, so this should be rare
SAVE_EVERY_S = 1.0  # a killed process loses at most this much of a reply
SAVE_SHARE = 0.02  # or, of a long one, this part: the whole text is written each time


def save_interval(elapsed_s: float) -> float:
    """Seconds until a reply is saved again, so that the bytes written grow little faster than its length."""
    return max(SAVE_EVERY_S, elapsed_s * SAVE_SHARE)


def larger_context(loaded: Model) -> str:
    """Advice for a chat whose context is full."""
    size, trained = loaded.engine.context_size, loaded.model.trained_context
    if loaded.is_remote:
        return loaded.engine.larger_context
    return f"/set ctx {min(2 * size, trained)} enlarges it" if size < trained else "this is the model's largest context"


@dataclass(slots=True)
class ReplyRecorder:
    """The reply to the last question of `session`; it may continue the reply `continued`, or begin with `prefill`."""

    store: Store
    session: Session
    loaded: Model
    settings: Settings
    continued: StoredMessage | None = None
    prefill: Message | None = None
    tools: Tools = ()
    reply: Reply = field(default_factory=Reply)
    _is_stored: bool = False
    _messages: Messages = field(init=False)  # up to the question: later, a part of the reply may be stored
    _prefix: TokenIds = field(init=False)  # tokens of the reply that the next request continues
    _generated: int = 0  # tokens of this reply before older turns were dropped

    def __post_init__(self) -> None:
        self._messages = self.store.messages(self.session)
        self._prefix = self._continued_tokens

    def record(self, majority_vote: MajorityVote | None) -> Events:
        """Yield the events of a reply, or of a vote, and save the reply, or the leading sample. Raises SessionError."""
        if notice := self._make_room():
            yield notice
        if majority_vote:
            try:
                yield from self.loaded.vote_events(self._request, majority_vote)
            finally:
                self.reply = majority_vote.reply or self.reply
        else:
            with closing(self._record_reply()) as events:
                yield from with_notices_behind(events)
        self._save("cancelled")

    def _record_reply(self) -> Events:
        """Yield the events of the reply, which continues after older turns are dropped if it fills the context."""
        before, forced = None, ForcedTokens()
        if self.continued:
            before, forced = self.continued.message, forced_tokens(self.continued.metadata)
        while True:
            reply = self.loaded.respond(self._request)
            if before:
                begin_after(reply, before, forced)
            self.reply = reply
            notice = yield from self._record_until_full()
            if notice is None:
                return
            yield notice
            before, forced = self.reply.message, self.reply.finish.forced
            self._generated += self.reply.finish.completion_tokens

    def _record_until_full(self) -> Generator[Event, None, NoticeEvent | None]:
        """Yield the events of the reply, and save it now and then.

        If it fills the context, and older turns can be dropped, drop them, and return the notice of that.
        """
        start = time.monotonic()
        next_save = start + save_interval(0.0)
        with closing(self.reply.events()) as events:
            for event in events:
                now = time.monotonic()
                if self._has_output and now >= next_save:
                    next_save = now + save_interval(now - start)
                    with suppress(SessionError):  # generation continues; it is saved at the end
                        self._save(None)
                if isinstance(event, FinishEvent) and event.reason == "context" and event.has_all_tokens:
                    self._prefix, self.prefill = tuple(self.reply.sampled), calls_of(self.reply.message)
                    if notice := self._make_room():
                        return notice
                yield event
        return None

    @property
    def _request(self) -> Ask:
        limit = self.settings.max_tokens and max(1, self.settings.max_tokens - self._generated)
        conversation = replace(self._conversation, prefill=self.prefill)
        settings = replace(self.settings, max_tokens=limit)
        return Ask(conversation, settings, prefix_tokens=self._prefix, tools=self.tools)

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
        try:
            self.session = self.store.move(self.session, previous_leaf)
        except SessionError:  # not writable: restore the conversation in memory at least
            self.session = replace(self.session, leaf=previous_leaf)

    @property
    def _conversation(self) -> Conversation:
        conversation = conversation_of(self.session, self._messages, self.loaded.model)
        return Ask(conversation, self.settings, tools=self.tools).conversation

    def _make_room(self) -> NoticeEvent | None:
        """Drop the session's oldest turns if the reply needs the room; return a notice if others than before are.

        Turns dropped from a smaller context are restored if the remaining ones leave most of this one free.
        """
        size, previous_first = self.loaded.context_size, self.session.first
        assert size is not None, "the model is loaded"
        if previous_first and self._count(self._conversation) < size * RESTORE_BELOW:
            self.session = self.store.update_session(self.session, first=None)
        if self.settings.overflow == "stop":
            return None
        conversation, visible = self._conversation, visible_messages(self.session, self._messages)
        longest = max(len(stored.message.tokens or ()) for stored in visible)
        dropped = messages_to_drop(conversation, self._count, size, self.settings.max_tokens, longest)
        if not dropped:
            return None
        first = visible[dropped].id
        self.session = self.store.update_session(self.session, first=first)
        if first == previous_first:
            return None
        tokens = self._count(conversation) - self._count(drop_oldest(conversation, dropped))
        return NoticeEvent(
            f"the context of {size} tokens is nearly full: dropped the"
            f" {dropped} oldest messages ({tokens} tokens) from it",
            f"the session keeps them; {larger_context(self.loaded)}; /set overflow stop refuses such questions instead",
        )

    def _count(self, conversation: Conversation) -> int:
        """Tokens of a conversation's prompt, and of the part of the reply that is continued."""
        return self.loaded.count_tokens(conversation) + len(self._prefix)

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
            self.store.update_message(self.session, self.reply.message, metadata)
        else:
            self.session = self.store.add_message(self.session, self.reply.message, metadata)
            self._is_stored = True


def messages_to_drop(
    conversation: Conversation,
    count: Callable[[Conversation], int],
    context_size: int,
    max_tokens: int | None,
    longest: int = 0,
) -> int:
    """Number of messages to drop before a reply; 0 if all fit, or dropping would not help.

    Drops the oldest turns, each a question with its reply; the system prompt and the last question stay. `count` counts
    the tokens of a conversation's prompt. The `longest` reply so far had this many tokens, with its reasoning; there is
    room for another one, up to half of the context.
    """
    tokens = count(conversation)
    room = reply_room(context_size, max_tokens, longest)
    if tokens + room <= context_size:
        return 0
    target = min(context_size - room, tokens - context_size // DROP_FRACTION)
    turns = (len(conversation.messages) - 1) // 2

    def free_after(dropped: int) -> int:
        return context_size - count(drop_oldest(conversation, 2 * dropped))

    # Counting tokenizes the conversation: a binary search does so a few times.
    fewest = bisect_left(range(turns), context_size - target, key=free_after)
    return 2 * fewest if free_after(fewest) > 0 else 0


def drop_oldest(conversation: Conversation, messages: int) -> Conversation:
    return replace(conversation, messages=conversation.messages[messages:])
