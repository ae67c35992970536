"""What a model sees of a session, which of its replies it can continue, and what replies record of their settings."""

from __future__ import annotations

from dataclasses import replace

from cerebrum_cli.chat.session import Messages, ReplyMetadata, Session, StoredMessage
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.declaration import LORA
from cerebrum_cli.core.events import Forced, ForcedTokens
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import SAMPLING_KEYS, Settings
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.vocabulary import drop_partial_character
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Reply

PARAMS = (*(key for key in SAMPLING_KEYS if key != "seed"), "think")


def conversation_of(session: Session, messages: Messages, model: InstalledModel) -> Conversation:
    """Build the conversation that a model sees of a session, starting at the first message in its context.

    Its own replies keep their tokens; those of other models are tokenized again. So are replies that ended while
    reasoning, or before it: their markup is unclosed, and everything after it would be reasoning.
    """
    seen = []
    for stored in visible_messages(session, messages):
        message = stored.message
        if not is_author(model, stored.metadata):
            rounds = tuple(replace(part, tokens=None) for part in message.rounds)
            message = replace(message, tokens=None, rounds=rounds)
        if message.tokens and not message.content:
            message = replace(message, tokens=None if message.reasoning else ())
        seen.append(message)
    return Conversation(tuple(seen), session.system_prompt)


def visible_messages(session: Session, messages: Messages) -> Messages:
    for index, stored in enumerate(messages):
        if stored.id == session.first:
            return messages[index:]
    return messages


def without_last(conversation: Conversation) -> Conversation:
    """A conversation without its last reply, whose calls, if it has any, begin the next one."""
    *before, last = conversation.messages
    return replace(conversation, messages=tuple(before), prefill=calls_of(last))


def calls_of(reply: Message) -> Message | None:
    """The beginning of a reply up to the results of its last calls; None without calls."""
    if not reply.rounds:
        return None
    return Message("assistant", "", rounds=reply.rounds)


def no_continuation(last: StoredMessage, model: InstalledModel) -> str | None:
    """Why a model cannot continue the last reply; None if it can."""
    author = last.metadata.model
    if last.metadata.finish_reason == "stop":
        return "nothing to continue: the reply is complete"
    if model.is_served:
        return "this server cannot continue a reply: it takes messages, not token ids"
    if author is None and last.metadata.finish_reason == "cancelled" and not last.message.content:
        return "nothing to continue: the reply was interrupted before it began"
    if author != model.reference:
        return f"{author or 'another program'} wrote the last reply; {model.reference} cannot continue it"
    if not is_author(model, last.metadata):
        return "the last reply cannot be continued: the model's file or adapters have changed"
    if last.message.tokens is None:
        return "the last reply cannot be continued: its tokens are not saved"
    return None


def is_author(model: InstalledModel, metadata: ReplyMetadata) -> bool:
    return (
        metadata.vocabulary is not None  # the file could be read
        and metadata.model == model.reference
        and metadata.vocabulary == model.vocabulary
        and (metadata.params or {}).get(LORA, []) == model.adapter_names
    )


def without_partial_character(stored: StoredMessage, model: Model) -> StoredMessage:
    """A reply to continue, without the tokens of a character that it ends within, which are generated again."""
    message, tokens = stored.message, stored.message.tokens or ()
    whole = drop_partial_character(model.engine.vocabulary, tokens)
    if len(whole) == len(tokens):
        return stored
    content = message.content.removesuffix("\ufffd").rstrip()  # a reply's trailing space is held back
    return replace(stored, message=replace(message, content=content, tokens=whole))


def session_params(settings: Settings, model: InstalledModel) -> JsonDict:
    params = {}
    for key in PARAMS:
        value = getattr(settings, key)
        params[key] = list(map(str, value)) if isinstance(value, tuple) else value
    return params | model.adapter_params


def reply_metadata(
    reply: Reply, loaded: Model, params: JsonDict, unfinished: str | None = "cancelled"
) -> ReplyMetadata:
    """How a reply was generated; `unfinished` is the reason to finish of one that has not come to an end."""
    if loaded.served_name:
        params = {**params, "served_model": loaded.served_name}
    metadata = ReplyMetadata(
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


def settings_of(stored: StoredMessage, settings: Settings) -> Settings:
    """Settings, overridden by those that a reply's prompt was rendered with."""
    params = stored.metadata.params or {}
    return replace(settings, think=params.get("think"))


def forced_tokens(metadata: ReplyMetadata) -> ForcedTokens:
    timings = metadata.timings or {}
    return tuple(Forced(*place) for place in timings.get("forced", ()))


def begin_after(reply: Reply, before: Message, forced: ForcedTokens) -> TokenIds:
    """Begin a reply with the text and the tokens of the one that it continues; these tokens."""
    tokens = before.tokens or ()
    reply.begin(tokens, [("thinking", before.reasoning or ""), ("answer", before.content)], forced)
    return tokens
