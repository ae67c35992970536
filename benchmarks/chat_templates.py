"""Compare prompts of three turns, whose replies have reasoning, with those that `transformers` renders.

Needs `pip install transformers`.
Usage: python benchmarks/chat_templates.py DIRECTORY

DIRECTORY holds Jinja files, such as models/templates in llama.cpp's sources. Each is rendered with its switch for
reasoning left alone, on and off. `transformers` gets a reply's reasoning in every way that its users choose from: in a
field of its own, and in the content with the markup that the template mentions. A template that drops reasoning must
give the same prompt as ours for one of them; for any other, ours may hold the answers alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from transformers.utils.chat_template_utils import render_jinja_template

from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.errors import FormatError
from cerebrum_cli.formats.markup import REASONING_MARKUPS
from cerebrum_cli.formats.template import EmbeddedFormat
from cerebrum_cli.formats.template_sandbox import find_reasoning_history, find_switch, variables

BOS, EOS = "<BOS>", "<EOS>"
THREE_TURNS = (
    Conversation()
    .user(" What is 2 + 2? ")
    .assistant("It is **4**.", reasoning="Two and two.\n\nThat is four.")
    .user("And 3 + 3?\n")
    .assistant("6", reasoning="Three & three.")
    .user("Why?")
)
Outcome = Literal["equal, drops reasoning", "equal", "rejected by both", "different"]


def main() -> None:
    """Compare all templates and print the counts; exit with code 1 if one is different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    outcomes: dict[Outcome, set[str]] = {}
    prompts = 0
    for path in sorted(parser.parse_args().directory.glob("*.jinja")):
        for outcome in compare(path.read_text(encoding="utf-8")):
            prompts += 1
            outcomes.setdefault(outcome, set()).add(path.stem)
    for outcome, names in outcomes.items():
        print(f"{outcome}: {len(names)} templates: {', '.join(sorted(names))}")
    print(f"{prompts} prompts")
    sys.exit("different" in outcomes)


def compare(source: str) -> Iterator[Outcome]:
    """Compare the prompts of one template, for each state of its switch."""
    switch = find_switch(source)
    ours = EmbeddedFormat(source=source, bos=BOS, eos=EOS, special_tokens=lambda _: ())
    for thinks in (None, True, False) if switch else (None,):
        values = {} if switch is None or thinks is None else switch.values(thinks)
        theirs = [prompt for messages in ways(source) if (prompt := render(source, messages, values)) is not None]
        try:
            parts = ours.render(replace(THREE_TURNS, thinks=thinks))
        except FormatError:
            yield "different" if theirs else "rejected by both"
            continue
        prompt = "".join(part.value for part in parts if isinstance(part, Text))
        if prompt not in theirs:
            yield "different"
            continue
        history = find_reasoning_history(source, {**variables(BOS, EOS), **values})
        yield "equal, drops reasoning" if history.drops else "equal"


def ways(source: str) -> Iterator[list[dict[str, str]]]:
    """The messages, with reasoning in a field, and in the content with each markup that may be the model's."""
    turns = THREE_TURNS.messages
    yield [
        {"role": turn.role, "content": turn.content} | ({"reasoning": turn.reasoning} if turn.reasoning else {})
        for turn in turns
    ]
    for markup in REASONING_MARKUPS:
        if markup.open in source or markup.close in source:
            contents = [(markup.wrap(turn.reasoning) if turn.reasoning else "") + turn.content for turn in turns]
            yield [{"role": turn.role, "content": text} for turn, text in zip(turns, contents, strict=True)]


def render(source: str, messages: list[dict[str, str]], values: dict[str, Any]) -> str | None:
    """The prompt that `transformers` renders; None if the template fails."""
    tokens = {"bos_token": BOS, "eos_token": EOS}
    try:
        [prompt], _ = render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=True, **tokens, **values
        )
    except Exception:  # a template is code: it can fail in any way code can
        return None
    return str(prompt)


if __name__ == "__main__":
    main()
