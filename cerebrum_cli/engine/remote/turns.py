"""Replies that a server generates, under controls here: they are asked for in turns, each a request of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cerebrum_cli.core.events import Forced, Timings
from cerebrum_cli.engine.control import Controls, Force, Intervention
from cerebrum_cli.engine.sequence import Request


@dataclass(slots=True)
class Turns:
    """The turns of one reply, whose controls have fed on all tokens so far; `intervention` ends the running turn.

    A turn began after `start` tokens of the reply. It is asked for up to `end`: a whole reply comes without a chance to
    intervene before, so it is no longer than its controls need to decide.
    """

    request: Request
    controls: Controls = field(init=False)
    start: int = 0
    end: int | None = None
    intervention: Intervention | None = None
    forced: list[Forced] = field(default_factory=list)
    timings: list[Timings] = field(default_factory=list)
    cached_tokens: int | None = None  # of the first turn

    def __post_init__(self) -> None:
        self.controls = Controls(self.request.controls)

    @property
    def limit(self) -> int | None:
        """The limit of the whole reply."""
        return self.request.params.max_tokens

    def first(self) -> Request:
        """The request of the first turn."""
        return self._limited(self.request)

    def following(self, tokens: Sequence[int], generated: int) -> Request:
        """The request that continues the reply after these tokens, as far as they are known of those generated."""
        self.start, self.intervention = generated, None
        prompt = (*self.request.prompt_tokens, *tokens)
        return self._limited(replace(self.request, prompt_tokens=prompt, n=1, max_n=1))

    def feed(self, tokens: Sequence[int], text: str) -> None:
        """Add tokens that complete a text, and let the controls intervene after them."""
        self._feed(tokens, text)
        self.intervention = self.controls.intervene()

    def force(self, force: Force, generated: int) -> None:
        """Record that tokens are forced into a reply of `generated` tokens."""
        self.forced.append(Forced(generated, len(force.tokens)))

    def feed_forced(self, token: int, text: str) -> None:
        """Add a token that was forced."""
        self._feed((token,), text)

    def was_shortened(self, generated: int) -> bool:
        """Whether the running turn ended only because no more tokens were asked for."""
        is_over = self.limit is not None and generated >= self.limit
        return self.end is not None and generated >= self.end and not is_over

    def end_turn(self, timings: Timings, cached_tokens: int) -> None:
        """Record what the server states of a turn."""
        self.timings.append(timings)
        self.cached_tokens = cached_tokens if self.cached_tokens is None else self.cached_tokens

    @property
    def total(self) -> Timings:
        """The times of all turns as those of one reply; nothing if the server has not stated them all."""
        first, *others = self.timings
        if not all(each.decode_s for each in self.timings):
            return Timings()
        return replace(
            first,
            decode_s=first.decode_s + sum(each.prefill_s + each.decode_s for each in others),
            draft_n=sum(each.draft_n for each in self.timings),
            draft_n_accepted=sum(each.draft_n_accepted for each in self.timings),
        )

    def _feed(self, tokens: Sequence[int], text: str) -> None:
        for index, token in enumerate(tokens, start=1):
            self.controls.feed(token, text if index == len(tokens) else "")

    def _limited(self, request: Request) -> Request:
        """The request with the limit of its turn."""
        horizon = None if request.stream else self.controls.horizon
        limits = [each for each in (self.limit, horizon) if each is not None and each > self.start]
        self.end = min(limits, default=None)
        most = None if self.end is None else self.end - self.start
        return replace(request, params=replace(request.params, max_tokens=most))
