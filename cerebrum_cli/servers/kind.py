"""What each kind of server states: what it is, how it is asked, and what the events of its replies mean."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal, Self

from cerebrum_cli.core.events import Timings
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.sampling import SAMPLERS, SamplingParams
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import ToolCalls
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.endpoint import ServerInfo, Servers

LEAST_LOGPROB = -9999.0  # which vLLM states for none
ANY_CONTEXT = 2**24  # tokens, of a server that does not state its context
DEFAULTS = SamplingParams()

StopReason = Literal["eos", "limit"]


@frozen
class ReplyChunk:
    """A part of one sample's reply, or the whole: token ids, to be decoded here, or text.

    - `index`: of the sample, among those that were asked for together
    - `total`: number of tokens so far; if ids are missing, `text` is that of all tokens since the last text
    - `reasoning`: sent by the server apart from the text after it
    - `progress`: tokens of the prompt that are evaluated, and all of them
    - `end`: in the last part only. A "limit" is that of tokens or of the context
    - `calls`, `prompt_tokens`, `timings`: in the last part, if the server states them
    - `cached`: with `progress` or an `end`, the prompt tokens that came from the server's cache
    - `likeliest`: log probabilities of the likeliest first tokens, by id, or by text from a server that sends no ids
    - `withheld`: with an `end`, why the server withheld the rest
    """

    tokens: TokenIds = ()
    total: int | None = None
    text: str = ""
    reasoning: str = ""
    progress: tuple[int, int] | None = None
    end: StopReason | None = None
    calls: ToolCalls = ()
    prompt_tokens: int | None = None
    cached: int = 0
    timings: Timings = field(default_factory=Timings)
    likeliest: Mapping[int | str, float] = field(default_factory=dict)
    withheld: str = ""
    index: int = 0


@frozen
class ServerKind(ServerInfo, ABC):
    """A server of one kind: how to ask it, and how to read its replies."""

    completion_path: ClassVar[str]
    samplers: ClassVar[Collection[str]] = SAMPLERS  # the settings that it takes

    @classmethod
    @abstractmethod
    def described(cls, entry: JsonObject, details: JsonObject) -> Self:
        """A server by its model's entry in /v1/models, and what the path of its kind answers."""

    @abstractmethod
    def body(self, request: Request, seed: int, samples: int) -> JsonDict:
        """Body that asks for a stream of samples, the first with this seed."""

    @abstractmethod
    def read(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        """The parts of replies, the last of each with its end. Raises one of `DAMAGE` for damaged ones."""

    @property
    def max_samples(self) -> int:
        """Maximum number of samples of one request."""
        return 1

    @property
    def max_window(self) -> int:
        """Maximum number of samples at a time, if a user asks for more than `slots`."""
        return Servers.MAX_WINDOW

    def ignored(self, request: Request) -> list[str]:
        """Settings of a request that have no effect there."""
        ignored = []
        for name, value in request.params.samplers.items():
            if name not in self.samplers and value and value != getattr(DEFAULTS, name):
                ignored.append(name)
        if request.ask.ignore_eos and self.takes_messages:
            ignored.append("ignore_eos")
        return ignored

    def room_for_reply(self, request: Request) -> int:
        """Tokens that the context has left; at least 1, so that the server refuses a prompt as too long."""
        return max(1, self.context_size - len(request.prompt_tokens))


def origin(record: Mapping[str, str]) -> str:
    """Where the replies of a recorded server come from, in words: not its build, which may be updated."""
    return f"{record['model']} on {record['kind']}"


def file_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def stated_count(count: Any) -> int | None:
    """A number of tokens that a server states; None without one that is possible."""
    return count if isinstance(count, int) and 0 < count <= ANY_CONTEXT else None


def log_probability(stated: Any) -> float:
    """A log probability that a server states, which may be above 0 by rounding. Raises ValueError or TypeError."""
    value = float(stated)
    if not value < 1:  # as NaN is not
        raise ValueError(f"impossible log probability: {value}")
    return min(max(value, LEAST_LOGPROB), 0.0)
