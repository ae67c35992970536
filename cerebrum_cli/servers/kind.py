"""The interface of all kinds of servers, and the parts of their replies."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import Logprobs, Timings
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.sampling import SAMPLERS, SamplingParams
from cerebrum_cli.core.tools import ToolCalls
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.endpoint import ServerInfo

ANY_CONTEXT = 2**24  # tokens, of a server that does not state its context
DEFAULTS = SamplingParams()

Likeliest = Mapping[int | str, float]
StopReason = Literal["eos", "stop string", "limit", "unstated"]


@frozen
class ReplyChunk:
    """A part of one sample's reply, or the whole: token ids, to be decoded here.

    - `index`: of the sample, among those that were asked for together
    - `total`: number of tokens so far. With it, ids may be missing, and `text` is that of all tokens since the last
      text; without it, a `text` has no ids
    - `reasoning`: sent by the server apart from the text after it
    - `progress`: tokens of the prompt that are evaluated, and all of them
    - `end`: in the last part only. A "limit" is that of tokens or of the context; "unstated" counts as "eos" below it
    - `calls`, `prompt_tokens`, `timings`: in the last part, if the server states them
    - `cached`: with `progress` or an `end`, the prompt tokens that came from the server's cache
    - `likeliest`: log probabilities of the likeliest first tokens, by id, or by text from a server that sends no ids
    - `withheld`: with an `end`, why the server withheld the rest
    """

    tokens: Sequence[int] = ()
    logprobs: Logprobs = ()
    total: int | None = None
    text: str = ""
    reasoning: str = ""
    progress: tuple[int, int] | None = None
    end: StopReason | None = None
    calls: ToolCalls = ()
    prompt_tokens: int | None = None
    cached: int = 0
    timings: Timings = field(default_factory=Timings)
    likeliest: Likeliest = field(default_factory=dict)
    withheld: str = ""
    index: int = 0


class ServerKind(ABC):
    """Requests to a kind of server, and the meaning of its replies. Damaged answers raise one of `DAMAGE`."""

    name: str
    description_path: str
    completion_path: str
    samplers: Collection[str] = SAMPLERS  # the settings that it takes
    counts_last_tokens = True  # for penalties, as llama.cpp does, instead of the whole text or reply
    takes_end_tokens = False  # since it does not know all of them itself

    @abstractmethod
    def read_info(self, entry: JsonObject, answer: Any) -> ServerInfo:
        """What a server is, by its model's entry in /v1/models and its description."""

    @abstractmethod
    def completion_body(self, request: Request, info: ServerInfo, seed: int, samples: int) -> JsonDict:
        """Body that asks for a stream of samples, the first with this seed."""

    @abstractmethod
    def read_stream(self, events: AsyncIterator[JsonDict]) -> AsyncIterator[ReplyChunk]:
        """The parts of streamed replies, the last of each with its end; a server may also send a whole reply."""

    def ignored(self, request: Request, info: ServerInfo) -> list[str]:
        """Settings of a request that have no effect there."""
        params = request.params
        ignored = []
        for name, value in params.samplers.items():
            if name not in self.samplers and value and value != getattr(DEFAULTS, name):
                ignored.append(name)
        if request.ask.ignore_eos and info.takes_messages:
            ignored.append("ignore_eos")
        if params.temperature > 0 and not info.has_seeds:
            ignored.append("seed")
        return ignored


def origin(record: Mapping[str, str]) -> str:
    """Where the replies of a recorded server come from, in words: not its build, which may be updated."""
    return f"{record['model']} on {record['kind']}"


def room_for_reply(request: Request, info: ServerInfo) -> int:
    """Tokens that the context has left for a reply; at least 1, so that the server refuses a prompt as too long."""
    return max(1, info.context_size - len(request.prompt_tokens))


def file_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def stated_count(count: Any) -> int | None:
    """A number of tokens that a server states; None without one that is possible."""
    return count if isinstance(count, int) and 0 < count <= ANY_CONTEXT else None


def require_ids(ids: Sequence[int] | None, count: int | None = None) -> Sequence[int]:
    """The token ids of a reply, `count` if known. Raises EndpointError if there are none."""
    if ids is None or count not in (None, len(ids)):
        raise EndpointError("the server does not send token ids", "update it, or connect without a gateway")
    return ids
