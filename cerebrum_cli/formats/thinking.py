"""Tell a model's marked thought from its answer while both are streamed."""

from __future__ import annotations

from cerebrum_cli.core.events import Channel
from cerebrum_cli.core.text import held_back
from cerebrum_cli.formats.format import ThoughtMarkup

THOUGHTS = (
    ThoughtMarkup("<think>", "</think>"),
    ThoughtMarkup("<thinking>", "</thinking>"),
    ThoughtMarkup("<seed:think>", "</seed:think>"),
    ThoughtMarkup("[THINK]", "[/THINK]"),
    ThoughtMarkup("<|channel>thought", "<channel|>"),
    ThoughtMarkup("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
    ThoughtMarkup("<|channel|>analysis<|message|>", "<|end|>", "<|start|>assistant<|channel|>final<|message|>"),
    ThoughtMarkup("<|channel|>commentary<|message|>", "<|end|>", "<|channel|>final<|message|>"),
    ThoughtMarkup("<|start|>assistant<|channel|>analysis<|message|>", "<|end|>"),  # one thought after another
    ThoughtMarkup("<|start|>assistant<|channel|>commentary<|message|>", "<|end|>"),
)

SplitText = tuple[Channel, str]


def opened_thought(prompt_end: str, thoughts: tuple[ThoughtMarkup, ...]) -> ThoughtMarkup | None:
    """Return the thought that a prompt's last text leaves open, as some templates do for the model."""
    return next((thought for thought in thoughts if prompt_end.rstrip().endswith(thought.open)), None)


class ThoughtSplitter:
    """Text of one reply in, text by channel out; white space around thought and answer is dropped.

    A thought can only stand before the answer: once that has begun, its text is never taken for markup.
    """

    def __init__(self, thoughts: tuple[ThoughtMarkup, ...], opened: ThoughtMarkup | None = None) -> None:
        self._thoughts = thoughts
        self._inside = opened
        self._answering = not thoughts and opened is None
        self._held = ""
        self._edges: dict[Channel, Edges] = {"answer": Edges(), "thinking": Edges()}

    def feed(self, text: str) -> list[SplitText]:
        """Return what is certain after this text."""
        self._held += text
        out: list[SplitText] = []
        while self._step(out):
            pass
        return out

    def flush(self) -> list[SplitText]:
        """Return what was held back, as a reply ends."""
        rest, self._held = self._held, ""
        out: list[SplitText] = []
        self._say("thinking" if self._inside else "answer", rest, out)
        return out

    def _step(self, out: list[SplitText]) -> bool:
        """Consume a piece of what is held; False when more text is needed."""
        if self._inside:
            return self._think(self._inside, out)
        if self._answering:
            self._say("answer", self._held, out)
            self._held = ""
            return False
        return self._begin()

    def _think(self, thought: ThoughtMarkup, out: list[SplitText]) -> bool:
        before, closed, after = self._held.partition(thought.close)
        keep = 0 if closed else held_back(before, (thought.close,))
        cut = len(before) - keep
        self._say("thinking", before[:cut], out)
        self._held = after if closed else before[cut:]
        if closed:
            self._inside = None
        return bool(closed)

    def _begin(self) -> bool:
        """Decide whether the reply begins, or goes on after a thought, with markup or with the answer."""
        text = self._held.lstrip()
        if not text:
            return False
        markers = {thought.open: thought for thought in self._thoughts}
        headers = [thought.header for thought in self._thoughts if thought.header]
        for marker in sorted((*markers, *headers), key=len, reverse=True):
            if text.startswith(marker):
                self._held = text[len(marker) :]
                self._inside = markers.get(marker)
                self._answering = marker not in markers
                return True
        if any(marker.startswith(text) for marker in (*markers, *headers)):
            return False
        self._answering = True
        return True

    def _say(self, channel: Channel, text: str, out: list[SplitText]) -> None:
        if shown := self._edges[channel].trim(text):
            out.append((channel, shown))


class Edges:
    """Drop the white space before and after a streamed text."""

    def __init__(self) -> None:
        self._begun = False
        self._space = ""

    def trim(self, text: str) -> str:
        """Return the text without white space that is, or may turn out to be, at an edge."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        body = text.rstrip()
        if not body:
            self._space += text
            return ""
        shown = self._space + body
        self._space = text[len(body) :]
        return shown
