"""Chat templates for tests, most of them like those of a model family, and a format built from one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.core.conversation import Conversation, PromptPart, Text
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.choice import SERVER, ChosenFormat, choose_format
from cerebrum_cli.formats.prompt_format import RAW, PromptFormat

TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parents[2] / "data" / "templates").glob("*.jinja"))
}
NO_SYSTEM = ("gemma",)
KEEPS_REPLIES = ("chatml", "gemma", "llama-2", "llama-3", "mistral", "qwen3.8", "smollm3")  # as they were sampled
BARE = "{% for message in messages %}{{ message.content }}|{% endfor %}"
UPPER = (
    "{% for message in messages %}<|im_start|>{{ message.content | upper }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
ONE_TURN = Conversation().user("Why is the sky blue?")
TWO_TURNS = ONE_TURN.assistant("Because of Rayleigh.").user("Who?")


def chosen_format(name: str, template: str | None = None, options: JsonObject | None = None) -> ChosenFormat:
    """The format of a name, which is also that of no format, or of a server."""
    chosen = ChosenFormat(name) if name in (RAW, SERVER) else choose_format(name, None, template)
    return replace(chosen, variables=options or {})


def embedded(backend: LlamaBackend, template: str, **options: Any) -> PromptFormat:
    """Build the format of a template, given as its source or the name of a family, for a vocabulary."""
    return ChosenFormat(EMBEDDED, TEMPLATES.get(template, template), options).build(backend, backend.context_size)


def untrusted(parts: tuple[PromptPart, ...]) -> list[str]:
    return [part.value for part in parts if isinstance(part, Text) and not part.trusted]


def chatml_prompt(question: str, system: str | None = None) -> str:
    before = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    return f"{before}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
