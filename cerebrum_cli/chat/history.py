"""Saved conversations: naming a session, continuing it and recording an exchange."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from io import FileIO
from pathlib import Path

from cerebrum_cli.chat.database import OR_UNSAVED, check_integrity
from cerebrum_cli.chat.session import Messages, ReplyMetadata, Session, StoredMessage, suggest_name, validated_name
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.declaration import LORA, NONE
from cerebrum_cli.core.errors import SessionError, UsageError
from cerebrum_cli.core.events import Events, Forced, ForcedTokens
from cerebrum_cli.core.files import lock_file, remove
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.paths import absolute_reference
from cerebrum_cli.core.settings import CONFIG, RECOMMENDED, SAMPLING_KEYS, SESSION, Layer, Settings, SourcedLayer
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.vocabulary import drop_partial_character
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Reply

PARAMS = (*(key for key in SAMPLING_KEYS if key != "seed"), "think", "keep_reasoning")
CHAT_TEMPLATE = "chat_template"
NO_CONTINUATION = "nothing to continue: the reply is complete, by another model, or without token ids"
KEPT = (LORA, CHAT_TEMPLATE)  # what later questions of `ask` use, too


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

    def check_integrity(self) -> tuple[int, int, int] | None:
        """Numbers of sessions and messages, and the version of the database; None in memory. Raises SessionError."""
        return check_integrity(self.store.path) if self.store.path else None

    def acquire_named(self, name: str | None) -> Session | None:
        """Lock a session by its name, None if there is none; without a name, the latest.

        Raises SessionError if the name is invalid, there is no latest session, or another process holds it.
        """
        session = self.store.latest() if name is None else self.store.find(validated_name(name))
        if session:
            return self.acquire(session)
        if name is None:
            raise SessionError("no session to continue", "ask without -c first")
        return None

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
        try:
            self.locks.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = lock_file(path, busy, mode=0o600, is_required=False)
        except OSError as error:
            raise SessionError(f"{path}: {error.strerror}", f"make it writable, {OR_UNSAVED}") from error
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
            raise UsageError(f"no session named {name!r}", hint)
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
        continued: StoredMessage | None = None,
        name: str | None = None,
    ) -> Session:
        """Save the new messages of a conversation and its reply; without a session, create one, by its `name` if given.

        Without a FinishEvent, the reply was interrupted. It takes the place of the last one if that was `continued`.
        """
        params = session_params(settings, loaded.model)
        with self.store.transaction():
            if session and continued:
                session = self.store.move(session, continued.parent)
            if session is None:
                name = name or unused_session_name(self.store, conversation)
                session = self.store.create(name, "ask", params=params)
            session = self.store.update_session(
                session,
                system_prompt=conversation.system_prompt,
                model=loaded.model.reference,
                format=loaded.format_name,
                params=with_kept(session.params, params),
            )
            for message in conversation.messages[len(visible_messages(self.store, session)) :]:
                session = self.store.add_message(session, message)
            metadata = reply_metadata(reply, loaded, params)
            return self.store.add_message(session, reply.message, metadata)


def with_kept(earlier: JsonObject, params: JsonObject) -> JsonDict:
    """Parameters of a session, with those of the latest question in place of what later questions use."""
    merged = dict(earlier)
    for key in KEPT:
        merged.pop(key, None)
        if key in params:
            merged[key] = params[key]
    return merged


def reply_metadata(
    reply: Reply, loaded: Model, params: JsonDict, unfinished: str | None = "cancelled"
) -> ReplyMetadata:
    """How a reply was generated; `unfinished` is the reason to finish of one that has not come to an end."""
    metadata = ReplyMetadata(
        reasoning=reply.message.reasoning,
        finish_reason=unfinished,
        model=loaded.model.reference,
        format=loaded.format_name,
        vocabulary=loaded.model.vocabulary,
        params=params,
    )
    if not reply.is_finished:
        return metadata
    finish = reply.finish
    timings = finish.timings._asdict()
    timings["prompt_tokens"] = finish.prompt_tokens
    timings["cached_tokens"] = finish.cached_tokens
    if finish.forced:
        timings["forced"] = finish.forced
    return replace(metadata, finish_reason=finish.reason, seed=finish.seed, timings=timings)


def forced_tokens(metadata: ReplyMetadata) -> ForcedTokens:
    timings = metadata.timings or {}
    return tuple(Forced(*place) for place in timings.get("forced", ()))


def with_session_defaults(session: Session | None, overrides: Layer, is_remote: bool = False) -> Layer:
    """Add a session's model, format, chat template and adapters to the overrides, unless these name another model.

    A chat's sampling settings are added too; those of `ask` applied to one question. A server has adapters of its own.
    """
    if session is None:
        return overrides
    named = overrides.get("model")
    if named is not None and absolute_reference(named) != session.model:
        return overrides
    defaults = {"model": session.model, "format": session.format}
    for key, value in session.params.items():
        if session.origin == "chat" or key in KEPT:
            defaults[key] = value
    if is_remote:
        defaults.pop(LORA, None)
    return SourcedLayer(SourcedLayer(defaults, origin=SESSION), overrides)


def session_params(settings: Settings, model: InstalledModel) -> JsonDict:
    params = {}
    for key in PARAMS:
        value = getattr(settings, key)
        params[key] = list(map(str, value)) if isinstance(value, tuple) else value
    path = settings.template_file
    if settings.chat_template and path is None:
        params[CHAT_TEMPLATE] = NONE
    elif path and settings.origin(CHAT_TEMPLATE) not in (*RECOMMENDED, CONFIG):
        params[CHAT_TEMPLATE] = str(path.absolute())
    return params | model.adapter_params


def unused_session_name(store: Store, conversation: Conversation) -> str:
    name = suggest_name(conversation)
    if store.find(name) is None:
        return name
    return store.unused_name(f"{name}-{date.today().isoformat()}")


def load_conversation(
    store: Store, session: Session, model: InstalledModel, settings: Settings | None = None
) -> Conversation:
    """Build the conversation that a model sees, starting at the first message in its context.

    The settings decide whether the next reply begins with reasoning.

    Its own replies keep their tokens; those of other models are tokenized again. So are replies that ended while
    reasoning, or before it: their markup is unclosed, and everything after it would be reasoning.
    """
    messages = []
    for stored in visible_messages(store, session):
        message = with_thinking(stored)
        if not is_author(model, stored.metadata):
            rounds = tuple(replace(part, tokens=None) for part in message.rounds)
            message = replace(message, tokens=None, rounds=rounds)
        if message.tokens and not message.content:
            message = replace(message, tokens=None if message.reasoning else ())
        messages.append(message)
    conversation = Conversation(tuple(messages), session.system_prompt)
    return settings.applied_to(conversation) if settings else conversation


def prepended(earlier: Conversation, conversation: Conversation, system_prompt: str | None) -> Conversation:
    """A session's conversation and the messages of another; a system prompt, if given, replaces the session's."""
    prompt = earlier.system_prompt if system_prompt is None else system_prompt
    return replace(conversation, messages=(*earlier.messages, *conversation.messages), system_prompt=prompt)


def resume(
    store: Store, session: Session, model: InstalledModel, settings: Settings
) -> tuple[StoredMessage, Conversation, Settings]:
    """A reply to continue, the conversation before it, and the settings it was generated with. Raises SessionError."""
    messages = store.messages(session)
    if not messages or not can_continue(messages[-1], model):
        raise SessionError(NO_CONTINUATION, 'ask a question: cerebrum ask -c "..."')
    settings = settings_of(messages[-1], settings)
    conversation = load_conversation(store, session, model, settings)
    return messages[-1], without_last(conversation), settings


def without_last(conversation: Conversation) -> Conversation:
    """A conversation without its last reply, whose calls, if it has any, begin the next one."""
    *before, last = conversation.messages
    return replace(conversation, messages=tuple(before), prefill=calls_of(last))


def calls_of(reply: Message) -> Message | None:
    """The beginning of a reply up to the results of its last calls; None without calls."""
    if not reply.rounds:
        return None
    return Message("assistant", "", rounds=reply.rounds)


def can_continue(last: StoredMessage, model: InstalledModel) -> bool:
    """Whether a model wrote the last reply, it was cut off, and its server takes token ids."""
    is_cut_off = last.metadata.finish_reason != "stop"
    return is_cut_off and not model.is_served and has_valid_tokens(last, model)


def without_partial_character(stored: StoredMessage, model: Model) -> StoredMessage:
    """A reply to continue, without the tokens of a character that it ends within, which are generated again."""
    message, tokens = stored.message, stored.message.tokens or ()
    whole = drop_partial_character(model.engine.vocabulary, tokens)
    if len(whole) == len(tokens):
        return stored
    content = message.content.removesuffix("\ufffd").rstrip()  # a reply's trailing space is held back
    return replace(stored, message=replace(message, content=content, tokens=whole))


def continued_reply(model: Model, request: Ask, continued: StoredMessage) -> Reply:
    """A reply that continues a stored one, and begins with its text."""

    def events() -> Events:
        yield from model.load()
        tokens = begin_with(reply, without_partial_character(continued, model))
        yield from model.respond(replace(request, prefix_tokens=tokens)).events()

    reply = Reply(events(), request.conversation)
    return reply


def begin_with(reply: Reply, before: StoredMessage) -> TokenIds:
    tokens = before.message.tokens or ()
    reasoning = before.metadata.reasoning or ""
    reply.begin(tokens, [("thinking", reasoning), ("answer", before.message.content)], forced_tokens(before.metadata))
    return tokens


def has_valid_tokens(stored: StoredMessage, model: InstalledModel) -> bool:
    """Whether a model wrote a reply, and its tokens have the same meaning in the present file of the model."""
    return stored.message.tokens is not None and is_author(model, stored.metadata)


def is_author(model: InstalledModel, metadata: ReplyMetadata) -> bool:
    return (
        metadata.vocabulary is not None  # the file could be read
        and metadata.model == model.reference
        and metadata.vocabulary == model.vocabulary
        and (metadata.params or {}).get(LORA, []) == model.adapter_names
    )


def with_thinking(stored: StoredMessage) -> Message:
    thinks = Settings(think=(stored.metadata.params or {}).get("think")).thinks
    return replace(stored.message, thinks=thinks, reasoning=stored.metadata.reasoning)


def settings_of(stored: StoredMessage, settings: Settings) -> Settings:
    """Settings, overridden by those that a reply's prompt was rendered with."""
    params = stored.metadata.params or {}
    return replace(settings, think=params.get("think"), keep_reasoning=params.get("keep_reasoning"))


def visible_messages(store: Store, session: Session) -> Messages:
    messages = store.messages(session)
    for index, stored in enumerate(messages):
        if stored.id == session.first:
            return messages[index:]
    return messages
