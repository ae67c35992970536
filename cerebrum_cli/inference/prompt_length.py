"""How much of the context a prompt takes; whether a text can fit is known without tokenizing it.

Tokenizing is a single native call, of seconds for megabytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from cerebrum_cli.core.conversation import Conversation, PromptPart, Text
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.engine.backend import Vocabulary

POSSIBLE_CHARACTERS = 8  # for each token of the context, which are tokenized without asking whether they can fit


def least_tokens(vocabulary: Vocabulary, context_size: int, prompt: Iterable[PromptPart]) -> int | None:
    """Least possible number of tokens of a prompt that cannot fit, whatever its tokens are; None for any other."""
    texts = [part.value for part in prompt if isinstance(part, Text)]
    if sum(map(len, texts)) <= POSSIBLE_CHARACTERS * context_size:
        return None
    least = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) // vocabulary.longest_token
    return least if least > context_size else None


def last_text(conversation: Conversation) -> tuple[Text, ...]:
    """The last message of a conversation, which is in every prompt, as a part."""
    return tuple(Text(message.content) for message in conversation.messages[-1:])


def length_notice(tokens: int, context_size: int) -> NoticeEvent | None:
    """A notice about a prompt that fits the context, but takes more than half of it; None for any other."""
    if not context_size < 2 * tokens < 2 * context_size:
        return None
    problem = f"the prompt has {tokens} tokens, more than half of the context of {context_size}"
    return NoticeEvent(problem, f"there is room for a reply of {context_size - tokens} tokens")
