"""Markup of reasoning: the table of the families of models that have it, as their templates write it."""

from __future__ import annotations

from cerebrum_cli.formats.prompt_format import THINK, ReasoningMarkup

HARMONY_FINAL = "<|start|>assistant<|channel|>final<|message|>"
SOLAR_FINAL = "<|begin|>assistant<|content|>"
BEGIN_RESPONSE = "[BEGIN FINAL RESPONSE]"
TAGS = ("thinking", "seed:think", "mm:think", "think:opensource", "thought", "thoughts", "reasoning")
HARMONY = ReasoningMarkup(
    "<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>", final=HARMONY_FINAL
)
GEMMA = ReasoningMarkup("<|channel>thought", "<channel|>")
MEDGEMMA = ReasoningMarkup("<unused94>thought", "<unused95>")
KIMI = ReasoningMarkup("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>")
MUSE = ReasoningMarkup("to=self<|message|>", "<|eom|>", "<|start|>assistant to=user<|message|>")
REASONING_MARKUPS = (
    THINK,
    *(ReasoningMarkup(f"<{name}>", f"</{name}>", own_lines=True) for name in TAGS),
    *(ReasoningMarkup(f"[{name}]", f"[/{name}]") for name in ("THINK", "THINKING", "REASONING")),
    ReasoningMarkup("◁think▷", "◁/think▷"),
    GEMMA,
    MEDGEMMA,
    ReasoningMarkup("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
    ReasoningMarkup("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>"),
    HARMONY,
    ReasoningMarkup("<|start|>assistant<|channel|>analysis<|message|>", "<|end|>", HARMONY_FINAL),
    ReasoningMarkup("<|inner_prefix|>", "<|inner_suffix|>"),  # of Apertus
    ReasoningMarkup("<|think|>", "<|end|>", SOLAR_FINAL),  # of Solar Open
    ReasoningMarkup("<|begin|>assistant<|think|>", "<|end|>", "<|content|>", final=SOLAR_FINAL),
    KIMI,
    MUSE,
    ReasoningMarkup("<|start|>assistant to=self<|message|>", "<|eom|>", "to=user<|message|>", final=MUSE.header),
    ReasoningMarkup("Here are my reasoning steps:", BEGIN_RESPONSE),  # of Apriel
)

# The last sentence of reasoning that is ended early, by how names of architectures begin.
CLOSING_SENTENCES = {
    "qwen3": "Considering the limited time by the user, I have to give the solution based on the thinking directly"
    " now.",  # arXiv:2505.09388, section 4.4
}


def closing_sentence(architecture: str) -> str:
    for name, text in CLOSING_SENTENCES.items():
        if architecture.startswith(name):
            return text
    return ""


def mentions_markup(template: str, markup: ReasoningMarkup) -> bool:
    """Whether a chat template has the markup; the end alone suffices for tags: others may also end turns."""
    return markup.open in template or (markup.own_lines and markup.close in template)
