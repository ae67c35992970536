"""What is asked: a conversation, settings, a grammar, and how many samples."""

from __future__ import annotations

from dataclasses import field, replace

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import Tools


@frozen
class Ask:
    """What is asked, whoever asks: a conversation, and how to sample `n` replies to it, or up to `max_n` in the end.

    `prefix_tokens` are the tokens of a reply to continue. With `logprobs`, each token event has its log probability.
    With `ignore_eos`, neither the model's end-of-text token nor the format's stop strings end a reply. With `stream`, a
    server sends tokens as they are sampled, not the whole reply at the end. The reply may call the `tools`.
    """

    conversation: Conversation = field(default_factory=Conversation)
    settings: Settings = field(default_factory=Settings)
    grammar: Grammar | None = None
    n: int = 1
    prefix_tokens: TokenIds = ()
    logprobs: bool = False
    ignore_eos: bool = False
    max_n: int = 1
    stream: bool = False
    tools: Tools = ()

    def __post_init__(self) -> None:
        conversation = self.settings.applied_to(self.conversation)
        if self.tools:
            conversation = replace(conversation, tools=tuple(tool.spec for tool in self.tools))
        object.__setattr__(self, "conversation", conversation)
