"""Events of loading and generating: progress, tokens, and one FinishEvent for each sequence.

They are named tuples, since one is created per token: frozen dataclasses take three times as long to create, and longer
to import.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.tools import Round, ToolCall, ToolCalls

if TYPE_CHECKING:
    from cerebrum_cli.core.row_events import RowEvent


T = TypeVar("T")
Channel = Literal["answer", "thinking"]
FinishReason = Literal["stop", "length", "cancelled", "context", "repetition"]
TRUNCATED = ("length", "context", "repetition")  # reasons of replies that did not end by themselves


class SequenceId(NamedTuple):
    """The sequence an event belongs to: the index of the request, of the sample in it, and of its reply in the sample.

    Turn 1 is the reply to the request's `follow_up`.
    """

    request: int
    sample: int = 0
    turn: int = 0


class Forced(NamedTuple):
    """Tokens in a reply that were not sampled: the position of the first, and their number."""

    at: int
    length: int


ForcedTokens = tuple[Forced, ...]


class Origin(NamedTuple):
    """The server that a reply is from, by its name, not its address, and where the weights of its model are from."""

    server: str
    served_model: str | None = None

    @property
    def keys(self) -> dict[str, str]:
        return {key: value for key, value in self._asdict().items() if value is not None}


class NoticeEvent(NamedTuple):
    """A problem that is not an error, and a hint, if there is one."""

    message: str
    hint: str = ""


OnNotice = Callable[[NoticeEvent], None]


class LoadEvent(NamedTuple):
    """Progress of loading the model; `fraction` is from 0 to 1."""

    fraction: float


class PromptEvent(NamedTuple):
    """Progress of prefill: `evaluated` of the prompt's `total` tokens are in the KV cache."""

    sequence: SequenceId
    evaluated: int
    total: int


class TokenEvent(NamedTuple):
    """Tokens and the text they complete: one token where a reply streams, otherwise all; none for text held back.

    With `is_correction`, the text so far was in the wrong channel: a tag has ended reasoning that none had begun, and
    the answer so far was reasoning; or no tag has ended the reasoning, which is repeated as a part of the answer.
    """

    sequence: SequenceId
    text: str
    channel: Channel = "answer"
    tokens: Sequence[int] = ()
    is_correction: bool = False


def answer_text(event: object) -> str:
    if isinstance(event, TokenEvent) and event.channel == "answer":
        return event.text
    return ""


def with_notices_behind(events: Iterable[Event]) -> Generator[Event, None, None]:
    """The events of one reply, with notices behind its text instead of inside."""
    held: list[NoticeEvent] = []
    has_text = False
    try:
        for event in events:
            if has_text and isinstance(event, NoticeEvent):
                held.append(event)
                continue
            if isinstance(event, FinishEvent):
                yield from held
                held.clear()
            has_text = has_text or (isinstance(event, TokenEvent) and bool(event.text))
            yield event
    except CerebrumError:
        yield from held
        raise
    yield from held


class CallEvent(NamedTuple):
    """A reply calls a function, with arguments as the model wrote them.

    With `is_done`, the call has the arguments that the function got, and its result.
    """

    call: ToolCall
    is_done: bool = False


class RoundEvent(NamedTuple):
    """A reply continues with the results of the functions it called: earlier events belong to the `round`."""

    round: Round


class ContinueEvent(NamedTuple):
    """The first event of a reply that continues another one, whose answer is `text`."""

    text: str


class OpeningEvent(NamedTuple):
    """The likeliest first tokens of a server's reply with their log probabilities.

    They are ids, or texts from a server that sends no ids.
    """

    sequence: SequenceId
    logprobs: Mapping[int | str, float]


class RefusedEvent(NamedTuple):
    """The last event of a sequence that failed while others continue, with the `text` of an answer that is refused."""

    sequence: SequenceId
    error: CerebrumError
    origin: Origin | None = None
    text: str | None = None


class TallyEvent(NamedTuple):
    """The tally of a vote has changed: the answers with their counts, best first, and the number of samples counted.

    `minimum` and `maximum` bound that number.
    """

    tally: tuple[tuple[str, int], ...]
    samples: int
    minimum: int
    maximum: int


class ServersEvent(NamedTuple):
    """Servers or nodes have changed, or have generated this many tokens without events so far."""

    tokens: int = 0


class StageEvent(NamedTuple):
    """Other work goes on, in this stage."""

    stage: str


class Timings(NamedTuple):
    """Wall-clock seconds of one sequence: prefill up to its first token, decode from there to its last.

    `ttft_s`, the time to first token, counts from the request, so it includes the wait for a slot. `decode_steps` is
    the number of tokens after the first; `draft_n` tokens were drafted, and `draft_n_accepted` of them accepted.
    """

    load_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    prefill_tokens: int = 0
    decode_steps: int = 0
    draft_n: int = 0
    draft_n_accepted: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prefill speed; 0 if the whole prompt was cached."""
        if self.prefill_s:
            return self.prefill_tokens / self.prefill_s
        return 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; 0 for a single token."""
        if self.decode_s:
            return self.decode_steps / self.decode_s
        return 0.0


class FinishEvent(NamedTuple):
    """The last event of a sequence: the reason it finished, token counts, timings and its seed.

    If it `is_followed`, the reply to the request's follow-up comes next.

    A server may not state how many tokens the prompt has, nor its context: they are 0 then.
    With `by_stop_string`, its tokens include those of the stop string, and its text does not. A server may not send all
    tokens of a reply: `has_all_tokens`. `forced` are the places where tokens were forced into the reply. One that ended
    `in_reasoning` has no answer. If it `has_closed_list`, a list that only repeated its last entries was ended. Replies
    of servers have an `origin`, and the `calls` that the server found in them.
    """

    sequence: SequenceId
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seed: int
    context_size: int
    timings: Timings
    by_stop_string: bool = False
    has_all_tokens: bool = True
    forced: ForcedTokens = ()
    origin: Origin | None = None
    is_followed: bool = False
    in_reasoning: bool = False
    calls: ToolCalls = ()
    has_closed_list: bool = False


Event: TypeAlias = """(
    NoticeEvent
    | LoadEvent
    | PromptEvent
    | TokenEvent
    | CallEvent
    | RoundEvent
    | ContinueEvent
    | OpeningEvent
    | FinishEvent
    | RefusedEvent
    | TallyEvent
    | RowEvent
    | ServersEvent
    | StageEvent
)"""
Events: TypeAlias = "Generator[Event, None, None]"
Emit: TypeAlias = "Callable[[Event], None]"


def raise_refusals(events: Iterable[T]) -> Generator[T, None, None]:
    for event in events:
        if isinstance(event, RefusedEvent):
            raise event.error
        yield event


OnProgress = Callable[[int, int], None]  # receives the bytes done and the total


class Progress(Protocol):
    """Receiver of a download's progress."""

    def update(self, stage: str, done: int, total: int) -> None:
        """Report how many bytes of a stage are done."""

    def notice(self, event: NoticeEvent) -> None:
        """Report an event to the user."""
