"""What sessions and replies record of the settings that they were made with, and how that applies again."""

from __future__ import annotations

from dataclasses import replace

from cerebrum_cli.chat.session import CHAT_TEMPLATE, KEPT, ReplyMetadata, StoredMessage
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.core.declaration import NONE
from cerebrum_cli.core.events import Forced, ForcedTokens
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.settings import CONFIG, RECOMMENDED, SAMPLING_KEYS, Settings
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.reply import Reply

PARAMS = (*(key for key in SAMPLING_KEYS if key != "seed"), "think")


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
