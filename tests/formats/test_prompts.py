"""Prompts of chat templates, and their errors: tests/data/prompts.json has a case a line.

In a prompt, `«…»` is text that is not trusted, and `{1 2}` are tokens. In the template of a case, a text may be
`replaced`, and there may be `more` behind it.
"""

import datetime
from typing import Any

import pytest
from cases import rows
from templates import TEMPLATES, embedded
from tool_templates import ALL_TEMPLATES, TOOLS, shown

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import FormatError
from cerebrum_cli.core.tools import Round, ToolCall
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.prompt_format import OTHER_FORMAT

CASES = rows("prompts")


def message(role: Any, content: str, fields: dict[str, Any] | None = None) -> Message:
    """A message with its fields, and the rounds before it."""
    fields = dict(fields or {})
    rounds = []
    for part in fields.pop("rounds", []):
        calls = tuple(ToolCall(*call) for call in part["calls"])
        tokens = tuple(part["tokens"]) if "tokens" in part else None
        rounds.append(Round(calls, part.get("content", ""), part.get("reasoning"), tokens))
    if "tokens" in fields:
        fields["tokens"] = tuple(fields["tokens"])
    return Message(role, content, rounds=tuple(rounds), **fields)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['what']}: {case['template'][:40]}")
def test_prompt_of_a_template(case: dict[str, Any], chatml: LlamaBackend) -> None:
    source = (ALL_TEMPLATES | TEMPLATES).get(case["template"], case["template"]) + case.get("more", "")
    source = source.replace(*case.get("replaced", ("", "")), 1)
    prompt_format = embedded(chatml, source, **case.get("options", {}))
    conversation = Conversation(
        tuple(message(*fields) for fields in case["messages"]),
        case.get("system"),
        case.get("thinks"),
        prefill=message(*case["prefill"]) if "prefill" in case else None,
        tools=TOOLS if case.get("functions") else (),
    )
    try:
        prompt = shown(prompt_format.render(conversation))
    except FormatError as error:
        assert error.message.startswith(f"the chat template embedded {case['error']}")
        assert "\n" not in error.message and error.hint == OTHER_FORMAT
    else:
        assert prompt == case["prompt"].replace("TODAY", f"{datetime.date.today()}")
    assert prompt_format.has_system == case.get("has_system", True)
