"""Checks of answers by programs: the same sequence is asked for one, which runs in Monty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.replies.source import ONLY_HERE
from cerebrum_cli.replies.tally import Program

if TYPE_CHECKING:
    from cerebrum_cli.programs.monty import Monty
    from cerebrum_cli.replies.interface import Model

QUESTION = (
    "Now write a short Python program that computes the answer from the numbers in the question, and prints only the"
    " final answer. Reply with the program only."
)
# A second block is what the model imagines that the program prints: in 21 of 40 replies of Qwen2.5-Coder-0.5B.
STOP = ("\n```\n",)
MAX_TOKENS = 400
PLACE = "☃"  # stands for the reply, to find where a conversation continues after one


def with_check(model: Model, prepared: Request, request: Ask) -> Request:
    """A request whose samples are each asked for a program afterwards. Raises UsageError behind a server."""
    if model.is_remote:
        raise UsageError(*ONLY_HERE)
    place = model.engine.vocabulary.tokenize([Text(PLACE)])[-1]
    conversation = request.conversation.assistant(PLACE, (place,)).user(QUESTION)
    settings = replace(request.settings, max_tokens=MAX_TOKENS, stop=STOP, think="off")
    check = model.prepare_reply(Ask(conversation, settings))
    tokens = tuple(check.prompt_tokens)
    after = len(tokens) - tokens[::-1].index(place)
    return replace(prepared, follow_up=replace(check, prompt_tokens=tokens[after:]))


def create_check(scope: Event) -> Callable[[str], Program | None]:
    """A function that runs the program in a reply, until `scope` is set. Raises UsageError if Monty does not work."""
    from cerebrum_cli.programs.monty import find_monty

    return partial(run_program, find_monty(), scope)


def run_program(monty: Monty, scope: Event, reply: str) -> Program | None:
    """Run the program of a reply; None if `scope` is set meanwhile."""
    from cerebrum_cli.programs.monty import program_in

    code = program_in(reply)
    result = monty.run(code, scope)
    if scope.is_set():
        return None
    printed = result.printed.strip()
    if result.error or not printed:
        return Program(code, None, result.is_unsupported)
    return Program(code, printed.splitlines()[-1])
