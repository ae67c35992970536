"""Models of bytes whose replies are concluded, and the controls that do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scripted_backend import END, Model, ScriptedBackend

from cerebrum_cli.formats.plain import CEREBRUM
from cerebrum_cli.inference.conclude import Conclude, plan_closings

BRIDGE = " The answer is"
AFTER = 20  # tokens


def concluding(after: int = AFTER, **start: Any) -> Conclude:
    """A conclusion in the format of the Cerebrum models, for tokens that are bytes."""
    return Conclude(after, plan_closings(ScriptedBackend(lambda held, seed: END), CEREBRUM), **start)


def thinker(thought: str, prompt: int = 2) -> Model:
    """A model that repeats a thought with its seed until the answer is asked for, which is the seed."""

    def model(held: tuple[int, ...], seed: int) -> int:
        text, own = bytes(held), thought.format(seed=seed).encode()
        begin = text.rfind(BRIDGE.encode()) + len(BRIDGE)
        if begin < len(BRIDGE):
            return own[(len(held) - prompt) % len(own)]
        generated, answer = text[begin:], f" {seed}.".encode()
        return answer[len(generated)] if len(generated) < len(answer) else END

    return model


def speaker(reply: Callable[[int], str], prompt: int = 2) -> Model:
    """A model with a reply for each seed, whatever was forced into it."""

    def model(held: tuple[int, ...], seed: int) -> int:
        text = reply(seed).encode()
        at = len(held) - prompt
        return text[at] if at < len(text) else END

    return model
