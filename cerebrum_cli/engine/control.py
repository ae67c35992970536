"""The interface of a control, which sees each token of a reply and may intervene after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol, TypeAlias

from cerebrum_cli.core.events import FinishReason, ForcedKind


class End(NamedTuple):
    """End the reply here."""

    reason: FinishReason


class Force(NamedTuple):
    """Continue the reply with these tokens, and then with at most `limit` others."""

    kind: ForcedKind
    tokens: tuple[int, ...]
    limit: int | None = None


Intervention: TypeAlias = End | Force


class ReplyControl(Protocol):
    """State of one reply, which decides after each of its tokens whether to intervene."""

    def feed(self, token: int, text: str) -> None:
        """Add a token, sampled or forced, and the text that it completes."""

    def intervene(self) -> Intervention | None:
        """What is to be done after the last token; not called while forced tokens are pending."""

    @property
    def horizon(self) -> int | None:
        """Number of tokens after which it has certainly decided whether to force any; None if it has, or never does."""


def limit_after(force: Force, generated: int, limit: int | None) -> int | None:
    """The limit of a reply of `generated` tokens, now `limit`, after tokens were forced."""
    if force.limit is None:
        return limit
    most = generated + len(force.tokens) + force.limit
    return most if limit is None else min(limit, most)


ControlFactory: TypeAlias = Callable[[], ReplyControl]
"""Creates the control of one reply; it is sent to the nodes of a cluster, and so must be picklable."""


class Controls:
    """The controls of one reply; the first that intervenes after a token counts."""

    def __init__(self, factories: Iterable[ControlFactory]) -> None:
        self._controls = [create() for create in factories]

    def feed(self, token: int, text: str) -> None:
        """Add a token, sampled or forced, and the text that it completes."""
        for control in self._controls:
            control.feed(token, text)

    def intervene(self) -> Intervention | None:
        """What is to be done after the last token; not to be called while forced tokens are pending."""
        for control in self._controls:
            if intervention := control.intervene():
                return intervention
        return None

    @property
    def horizon(self) -> int | None:
        """Number of tokens after which all have decided whether to force any; None if none will."""
        return min((control.horizon for control in self._controls if control.horizon is not None), default=None)
