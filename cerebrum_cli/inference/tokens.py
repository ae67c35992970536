"""What is known of text and the tokens it becomes: whether it can fit a context, and which token it is."""

from __future__ import annotations

from collections.abc import Iterable

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.parts import Part, Text, Tokens
from cerebrum_cli.core.sampling import TokenBias
from cerebrum_cli.engine.backend import Vocabulary

POSSIBLE_CHARACTERS = 8  # for each token of the context, which are tokenized without asking whether they can fit
MAX_SHOWN = 8  # tokens, in an error message


def least_tokens(vocabulary: Vocabulary, context_size: int, prompt: Iterable[Part]) -> int | None:
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


def resolve_biases(vocabulary: Vocabulary, biases: Iterable[TokenBias]) -> tuple[TokenBias, ...]:
    """Replace text by token ids; of several biases of a token the last counts. Raises UsageError."""
    resolved = {_token_id(vocabulary, token): bias for token, bias in biases}
    return tuple(TokenBias(token, bias) for token, bias in resolved.items())


def _token_id(vocabulary: Vocabulary, token: int | str) -> int:
    if isinstance(token, int):
        if token >= vocabulary.size:
            problem = f"logit_bias: this model has no token {token}"
            raise UsageError(problem, f"ids are below {vocabulary.size}")
        return token
    tokens = _tokens_within_text(vocabulary, token)
    if len(tokens) == 1:
        return tokens[0]
    shown = [f"{each} {vocabulary.piece(each, special=True).decode('utf-8', 'replace')!r}" for each in tokens]
    listed = ", ".join((*shown[:MAX_SHOWN], *(["..."] if len(shown) > MAX_SHOWN else [])))
    problem = f"logit_bias: {token!r} is not one token of this model but {len(tokens)}: {listed}"
    spaced = f" {token}"
    if len(_tokens_within_text(vocabulary, spaced)) == 1:
        raise UsageError(problem, f"with its leading space it is one: {spaced!r}")
    raise UsageError(problem, "bias some of them by their ids, as in 42=-1")


def _tokens_within_text(vocabulary: Vocabulary, text: str) -> tuple[int, ...]:
    """Tokens of a text that follows another: at the start, SentencePiece would add a space."""
    before = Tokens(vocabulary.tokenize([Text("a", trusted=True)]))
    return vocabulary.tokenize([before, Text(text, trusted=True)])[len(before.ids) :]
