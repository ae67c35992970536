"""Find out how a chat template treats reasoning, by rendering small conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache, partial
from typing import Any

from cerebrum_cli.core.conversion import EFFORTS
from cerebrum_cli.core.errors import FormatError
from cerebrum_cli.formats.template_sandbox import run_template
from cerebrum_cli.formats.thinking import ThoughtMarkup

SWITCHES = ("enable_thinking", "thinking")  # variables by which templates turn reasoning on and off
EFFORT_NAMES = ("reasoning_effort", "thinking_effort")  # variables that take an effort
COMMON_EFFORTS = ("low", "medium", "high")
THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")  # of a message; `transformers` sets each that is read
THOUGHT, QUESTION, ANSWER = "1234567", "2345678", "3456789"  # digits, which no template changes

Turn = Mapping[str, str]  # a message as templates get it: `role`, `content`, and its reasoning
WriteReply = Callable[[str, str | None], Turn]
"""Gives a template a reply: its answer, and its reasoning, if any."""


def variables(bos: str, eos: str, now: datetime) -> dict[str, Any]:
    """The variables that every template gets, besides the messages."""
    return {
        "add_generation_prompt": True,
        "bos_token": bos,
        "eos_token": eos,
        "tools": None,
        "documents": None,
        "strftime_now": now.strftime,
    }


@cache
def find_switch(source: str, bos: str, eos: str) -> str | None:
    """The variable by which a template turns reasoning on and off: one that changes a prompt; None without one."""
    values = {**variables(bos, eos, datetime.now()), "messages": [{"role": "user", "content": "?"}]}
    for name in SWITCHES:
        with suppress(FormatError):  # raised again where the prompt is rendered
            if name in source and len({run_template(source, {**values, name: value}) for value in (True, False)}) > 1:
                return name
    return None


@cache
def find_efforts(source: str, bos: str, eos: str) -> tuple[str | None, tuple[str, ...]]:
    """The variable by which a template takes an effort of reasoning, and the efforts it knows; None without one."""
    switch = find_switch(source, bos, eos)
    values = {**variables(bos, eos, datetime.now()), "messages": [{"role": "user", "content": QUESTION}]}
    values |= {switch: True} if switch else {}

    def render(name: str, effort: str) -> str | None:
        with suppress(FormatError):
            return run_template(source, {**values, name: effort})
        return None

    for name in EFFORT_NAMES:
        if name not in source:
            continue
        unknown = render(name, THOUGHT)
        prompts = {effort: prompt for effort in EFFORTS if (prompt := render(name, effort)) is not None}
        if unknown is None:
            return name, tuple(prompts)
        if THOUGHT in unknown:  # the template takes any
            return name, tuple(effort for effort in prompts if effort in COMMON_EFFORTS)
        if any(prompt != unknown for prompt in prompts.values()):
            return name, tuple(effort for effort in prompts if f"'{effort}'" in source or f'"{effort}"' in source)
    return None, ()


def write_answer(answer: str, _: str | None = None) -> Turn:
    return {"role": "assistant", "content": answer}


def write_fields(answer: str, thought: str | None) -> Turn:
    return {**write_answer(answer), **(dict.fromkeys(THOUGHT_FIELDS, thought) if thought else {})}


def write_inline(markup: ThoughtMarkup, answer: str, thought: str | None) -> Turn:
    """Give a template a reply as it was generated: with its reasoning before its answer."""
    return write_answer(markup.wrap(thought) + answer if thought else answer)


@cache
def reads_fields(source: str, bos: str, eos: str) -> bool:
    """Whether a template looks for the reasoning of some reply in a field of its own."""
    read: set[object] = set()

    class Watched(dict[str, str]):
        def __getitem__(self, key: str) -> str:
            read.add(key)
            return super().__getitem__(key)

        def __contains__(self, key: object) -> bool:
            read.add(key)
            return super().__contains__(key)

        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return super().get(key, default)

    switch, values = find_switch(source, bos, eos), variables(bos, eos, datetime.now())
    messages = _conversation(lambda *reply: Watched(write_fields(*reply)))[:-1]  # that of the last reply, too
    for thinks in (True, False) if switch else (None,):
        with suppress(FormatError):
            switched = {switch: thinks} if switch else {}
            run_template(source, {**values, **switched, "add_generation_prompt": False, "messages": messages})
    return not read.isdisjoint(THOUGHT_FIELDS)


def find_writer(source: str, values: Mapping[str, Any], thoughts: tuple[ThoughtMarkup, ...]) -> tuple[WriteReply, bool]:
    """How a template takes replies with their reasoning, and whether it drops that of earlier ones.

    A template without reasoning gets only the answers.
    """
    keeping: WriteReply | None = None
    for write in _writers(source, values["bos_token"], values["eos_token"], thoughts):
        with suppress(FormatError):  # GPT-OSS rejects markup in the content
            prompt = run_template(source, {**values, "messages": _conversation(write)})
            is_dropped = prompt.count(ANSWER) == 2 and prompt.count(THOUGHT) < 2
            if is_dropped or write is write_fields:
                return write, is_dropped
            keeping = keeping or write
    return keeping or write_answer, False


def _writers(source: str, bos: str, eos: str, thoughts: tuple[ThoughtMarkup, ...]) -> Iterator[WriteReply]:
    if reads_fields(source, bos, eos):
        yield write_fields
    for thought in thoughts:
        if thought.open in source or thought.close in source:
            yield partial(write_inline, thought)


def _conversation(write: WriteReply) -> list[Turn]:
    question = {"role": "user", "content": QUESTION}
    return [question, write(ANSWER, THOUGHT), question, write(ANSWER, THOUGHT), question]
