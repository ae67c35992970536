"""Split a streamed reply into reasoning and answer by the model's markup."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.events import Channel
from cerebrum_cli.core.text import partial_marker_length


@dataclass(frozen=True, slots=True)
class ReasoningMarkup:
    """The markup of a model's reasoning: `open` before it, `close` after it, `header` before the answer, if any.

    With `own_lines`, the reasoning is on lines of its own, and a blank line precedes the answer. `final` is the header
    behind this reasoning, where that is another one. `footer` ends an answer that began with the header.
    """

    open: str
    close: str
    header: str = ""
    own_lines: bool = False
    final: str = ""
    footer: str = ""

    def wrap(self, reasoning: str) -> str:
        """The reasoning with its markup, as it precedes an answer."""
        text = f"{self.open}\n{reasoning}" if self.own_lines else f"{self.open}{reasoning}"
        return text + self.ending(text)

    def ending(self, text: str = "", sentence: str = "") -> str:
        """Markup that ends the reasoning after a text, which may include `open`, and begins the answer.

        A closing `sentence` is a paragraph of its own before it.
        """
        if sentence:
            breaks = len(text) - len(text.rstrip("\n"))
            return "\n" * max(0, 2 - breaks) + sentence + self.ending(sentence)
        if not self.own_lines:
            return self.close + (self.final or self.header)
        body = text.rstrip("\n")
        breaks = 2 if body.endswith(self.open) else 1  # no reasoning leaves a blank line
        return "\n" * max(0, breaks - len(text) + len(body)) + self.close + "\n\n"


HARMONY_FINAL = "<|start|>assistant<|channel|>final<|message|>"
SOLAR_FINAL = "<|begin|>assistant<|content|>"
REASONING_MARKUPS = (
    ReasoningMarkup("<think>", "</think>", own_lines=True),
    ReasoningMarkup("<thinking>", "</thinking>", own_lines=True),
    ReasoningMarkup("<seed:think>", "</seed:think>", own_lines=True),
    ReasoningMarkup("[THINK]", "[/THINK]"),
    ReasoningMarkup("<|channel>thought", "<channel|>"),
    ReasoningMarkup("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
    ReasoningMarkup("<|channel|>analysis<|message|>", "<|end|>", HARMONY_FINAL),
    ReasoningMarkup("<|channel|>commentary<|message|>", "<|end|>", "<|channel|>final<|message|>", final=HARMONY_FINAL),
    # Second blocks.
    ReasoningMarkup("<|start|>assistant<|channel|>analysis<|message|>", "<|end|>", final=HARMONY_FINAL),
    ReasoningMarkup("<|start|>assistant<|channel|>commentary<|message|>", "<|end|>", final=HARMONY_FINAL),
    ReasoningMarkup("<|inner_prefix|>", "<|inner_suffix|>"),  # of Apertus
    ReasoningMarkup("<|think|>", "<|end|>", SOLAR_FINAL),  # of Solar Open
    ReasoningMarkup("<|begin|>assistant<|think|>", "<|end|>", "<|content|>", final=SOLAR_FINAL),
)
REPLACED = {  # what replaces the first markup in templates with this text
    # Granite 3.3.
    "<response></response>": ReasoningMarkup("<think>", "</think>", "<response>", footer="</response>"),
}

# The last sentence of reasoning that is ended early, by how names of architectures begin.
CLOSING_SENTENCES = {
    "qwen3": "Considering the limited time by the user, I have to give the solution based on the thinking directly"
    " now.",  # arXiv:2505.09388, section 4.4
}

SplitText = tuple[Channel, str]


def markups_of(template: str) -> tuple[ReasoningMarkup, ...]:
    first = next((markup for text, markup in REPLACED.items() if text in template), REASONING_MARKUPS[0])
    return first, *REASONING_MARKUPS[1:]


def closing_sentence(architecture: str) -> str:
    return next((text for name, text in CLOSING_SENTENCES.items() if architecture.startswith(name)), "")


def open_markup(prompt_end: str, markups: tuple[ReasoningMarkup, ...]) -> ReasoningMarkup | None:
    """The markup of reasoning that a prompt leaves open, as some templates do; None if there is none."""
    return next((markup for markup in markups if prompt_end.rstrip().endswith(markup.open)), None)


class ReasoningSplitter:
    """Splits the text of one reply by channel, and drops the white space around reasoning and answer.

    Reasoning comes before the answer: markup in the answer is plain text. `open_markup` is that of reasoning that
    has not ended, `held` text that is not assigned to a channel yet, since it may be markup.
    """

    def __init__(self, markups: tuple[ReasoningMarkup, ...], opened: ReasoningMarkup | None = None) -> None:
        self.markups = markups
        self.open_markup = opened
        self.is_in_answer = not markups and opened is None
        self.held = ""
        self._footer = ""
        self._spaces: dict[Channel, str] = {}  # white space that may be the last of a channel, once it has text

    def feed(self, text: str) -> list[SplitText]:
        """Add text, and return what can be assigned to a channel."""
        self.held += text
        out: list[SplitText] = []
        while self._step(out):
            pass
        return out

    def flush(self) -> list[SplitText]:
        text, self.held = self.held, ""
        if self._footer and text.rstrip() == self._footer:
            text = ""
        out: list[SplitText] = []
        self._emit("thinking" if self.open_markup else "answer", text, out)
        return out

    def _step(self, out: list[SplitText]) -> bool:
        if self.open_markup:
            close = self.open_markup.close
            before, closed, after = self.held.partition(close)
            cut = len(before) - (0 if closed else partial_marker_length(before, (close,)))
            self._emit("thinking", before[:cut], out)
            self.held = after if closed else before[cut:]
            self.open_markup = None if closed else self.open_markup
            return bool(closed)
        if self.is_in_answer:
            body, footer = self.held.rstrip(), self._footer
            is_over = bool(footer) and body.endswith(footer)
            cut = len(body) - len(footer) if is_over else len(self.held) - partial_marker_length(self.held, (footer,))
            self._emit("answer", self.held[:cut], out)
            self.held = self.held[cut:]
            return False
        return self._detect_markup()

    def _detect_markup(self) -> bool:
        """Decide between markup and answer, at the start of the reply or after a reasoning block."""
        text = self.held.lstrip()
        if not text:
            return False
        markers = {markup.open: markup for markup in self.markups}
        texts = (*markers, *(markup.header for markup in self.markups if markup.header))
        if text.startswith(texts):
            marker = max(filter(text.startswith, texts), key=len)
            self.held = text[len(marker) :]
            self.open_markup = markers.get(marker)
            self.is_in_answer = marker not in markers
            self._footer = next((markup.footer for markup in self.markups if markup.header == marker), "")
        elif any(marker.startswith(text) for marker in texts):
            return False
        else:
            self.is_in_answer = True
        return True

    def _emit(self, channel: Channel, text: str, out: list[SplitText]) -> None:
        """Add the text of a channel, without white space that may be at its start or end."""
        if channel not in self._spaces:
            text = text.lstrip()
        space, body = self._spaces.get(channel, ""), text.rstrip()
        if body:
            out.append((channel, space + body))
            self._spaces[channel] = text[len(body) :]
        elif channel in self._spaces:
            self._spaces[channel] = space + text
