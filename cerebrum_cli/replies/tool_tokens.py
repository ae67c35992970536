"""How many tokens of a prompt list the functions that the reply may call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import NoticeEvent

CountTokens = Callable[[Conversation], int]
SHARE = 4  # a list that takes more than one part in this many of the context gets a notice


def listing_tokens(conversation: Conversation, count_tokens: CountTokens) -> int:
    """Number of tokens that the list of functions adds to the prompt."""
    return count_tokens(conversation) - count_tokens(replace(conversation, tools=()))


def listing_notice(conversation: Conversation, count_tokens: CountTokens, context_size: int) -> NoticeEvent | None:
    """The notice of a list that takes a large part of the context; it names the largest function."""
    total = count_tokens(conversation)
    tokens = total - count_tokens(replace(conversation, tools=()))
    if tokens * SHARE <= context_size:
        return None
    sizes = {}
    for tool in conversation.tools:
        others = tuple(other for other in conversation.tools if other is not tool)
        sizes[tool.name] = total - count_tokens(replace(conversation, tools=others))
    largest = max(sizes, key=lambda name: sizes[name])
    taken = f"the list of functions takes {tokens:,} of the context's {context_size:,} tokens"
    return NoticeEvent(f"{taken}, {sizes[largest]:,} of them for {largest}", "offer fewer functions, or raise --ctx")
