"""Chat templates that write function calls, one for each shape, and what prompts of them hold of a call."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from command_line import ROOT

from cerebrum_cli.core.conversation import Conversation, Message, PromptPart, Text, Tokens
from cerebrum_cli.core.tools import Round, ToolCall, ToolCalls, ToolSpec
from cerebrum_cli.formats.prompt_format import PromptFormat

ALL_TEMPLATES = {
    path.stem.replace("_", " "): path.read_text(encoding="utf-8").removesuffix("\n")
    for path in sorted((ROOT / "tests" / "data" / "tool_templates").glob("*.jinja"))
}
"""Templates by how they write calls, or by what part of calls they lack."""

TOOL_TEMPLATES = {name: source for name, source in ALL_TEMPLATES.items() if not name.startswith("no ")}
_ARGUMENTS: dict[str, dict[str, str]] = {key: {} for key in ("city", "code", "data", "days", "flag", "items")}
TOOLS = tuple(ToolSpec(name, "", {"type": "object", "properties": _ARGUMENTS}) for name in ("weather", "run_python"))
ASKED = Conversation(tools=TOOLS).user("Do I need a coat?")
RESULT_TEXT = "the result"

LEFT_OUT = tomllib.loads((ROOT / "tests" / "data" / "template_collection.toml").read_text(encoding="utf-8"))


def collection() -> dict[str, str]:
    """The templates of llama.cpp's collection, by name; none before `make peers`."""
    paths = (ROOT / ".peers").glob("llama_cpp_python-*/vendor/llama.cpp/models/templates/*.jinja")
    return {path.stem: path.read_text(encoding="utf-8-sig") for path in sorted(paths)}


def pending(*rounds: Round, conversation: Conversation = ASKED) -> Conversation:
    """A conversation whose reply has made calls."""
    return replace(conversation, prefill=Message("assistant", "", rounds=rounds))


def called(*calls: ToolCall) -> Round:
    return Round(tuple(replace(call, result=RESULT_TEXT) for call in calls))


def shown(parts: Iterable[PromptPart]) -> str:
    """A prompt with its tokens as `{1 2}` and text that is not trusted as `«text»`."""
    texts = []
    for part in parts:
        if isinstance(part, Tokens):
            texts.append("{" + " ".join(map(str, part.ids)) + "}")
        else:
            texts.append(part.value if part.trusted else f"«{part.value}»")
    return "".join(texts)


def written(prompt_format: PromptFormat, calls: Sequence[ToolCall]) -> str:
    """What a format writes of calls, from where a prompt without them ends, to their results."""
    asked, called_prompt = (
        "".join(part.value for part in prompt_format.render(conversation) if isinstance(part, Text))
        for conversation in (ASKED, pending(called(*calls)))
    )
    shared = next(
        (at for at, (one, other) in enumerate(zip(asked, called_prompt, strict=False)) if one != other), len(asked)
    )
    start = asked[:shared]
    if start.rfind("<") > start.rfind(">"):
        shared = start.rfind("<")  # of a marker that begins like another
    return called_prompt[shared:].partition(RESULT_TEXT)[0]


def read_back(prompt_format: PromptFormat, calls: ToolCalls) -> ToolCalls:
    """The calls that a format reads in what it writes of calls."""
    return prompt_format.tool_format.read(written(prompt_format, calls), TOOLS).calls
