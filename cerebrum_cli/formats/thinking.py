"""Markup of reasoning: the table of the families of models that have it, as their templates write it."""

from __future__ import annotations

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts


@frozen
class ReasoningMarkup:
    """The markup of a model's reasoning: `open` before it, `close` after it, `header` before the answer, if any.

    With `own_lines`, the reasoning is on lines of its own, and a blank line precedes the answer. `final` is the
    answer's header after this reasoning, if it differs from `header`.
    """

    open: str
    close: str
    header: str = ""
    own_lines: bool = False
    final: str = ""

    @property
    def texts(self) -> Texts:
        """All texts of the markup."""
        return tuple(filter(None, (self.open, self.close, self.header, self.final)))

    def wrap(self, reasoning: str) -> str:
        """The reasoning with its markup, as it precedes an answer."""
        text = self.open + reasoning
        if self.own_lines:
            text = f"{self.open}\n{reasoning}"
        return text + self.ending(text)

    def ending(self, text: str = "", sentence: str = "") -> str:
        """Markup that ends the reasoning after a text, which may include `open`, and begins the answer.

        A closing `sentence` is a paragraph of its own before it.
        """
        if sentence:
            return missing_breaks(text, 2) + sentence + self.ending(sentence)
        if not self.own_lines:
            return self.close + (self.final or self.header)
        if text.rstrip("\n").endswith(self.open):  # no reasoning leaves a blank line
            return missing_breaks(text, 2) + self.close + "\n\n"
        return missing_breaks(text, 1) + self.close + "\n\n"


Markups = tuple[ReasoningMarkup, ...]


def missing_breaks(text: str, wanted: int) -> str:
    """The line breaks to add to a text that is to end with this many."""
    breaks = len(text) - len(text.rstrip("\n"))
    return "\n" * (wanted - breaks)


HARMONY_FINAL = "<|start|>assistant<|channel|>final<|message|>"
SOLAR_FINAL = "<|begin|>assistant<|content|>"
BEGIN_RESPONSE = "[BEGIN FINAL RESPONSE]"
TAGS = ("think", "thinking", "seed:think", "mm:think", "think:opensource", "thought", "thoughts", "reasoning")
HARMONY = ReasoningMarkup(
    "<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>", final=HARMONY_FINAL
)
GEMMA = ReasoningMarkup("<|channel>thought", "<channel|>")
MEDGEMMA = ReasoningMarkup("<unused94>thought", "<unused95>")
KIMI = ReasoningMarkup("<|open|>think<|sep|>", "<|close|>think<|sep|>", "<|open|>response<|sep|>")
MUSE = ReasoningMarkup("to=self<|message|>", "<|eom|>", "<|start|>assistant to=user<|message|>")
REASONING_MARKUPS = (
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


def open_markup(prompt_end: str, markups: Markups) -> ReasoningMarkup | None:
    """The markup of reasoning that a prompt leaves open, as some templates do; None if there is none."""
    end = prompt_end.rstrip()
    for markup in markups:
        if end.endswith(markup.open):
            return markup
    return None
