"""What reads the logits of the last decode with numpy: scores, and sampling that is greedy or follows a grammar.

A single answer does without: importing numpy takes longer than sampling all its tokens.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy
from numpy.ctypeslib import as_array

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import TokenLogprob
from cerebrum_cli.engine.backend import TokenScore
from cerebrum_cli.engine.control import AnswerStart
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.grammar import accept_token, is_allowed
from cerebrum_cli.engine.llama.sampler import BatchPosition, LlamaSampler
from cerebrum_cli.engine.sequence import continuation

if TYPE_CHECKING:
    from cerebrum_cli.engine.protocols import Sampler, Vocabulary


def logits(context: Any, index: int, size: int) -> Any:
    """View a row of `size` logits in llama.cpp's memory, valid until the next decode."""
    return as_array(llama.llama_get_logits_ith(context, index), (size,))


def score_row(row_logits: Any, tokens: Iterable[int]) -> list[TokenScore]:
    argmax = int(row_logits.argmax())
    highest = row_logits[argmax]
    log_total = float(highest) + float(numpy.log(numpy.exp(row_logits - highest).sum()))
    return [TokenScore(float(row_logits[token]) - log_total, token == argmax) for token in tokens]


def top_tokens(row_logits: Any, count: int) -> list[TokenLogprob]:
    """The tokens with the highest logits in a row, the lowest id first if tied."""
    count = min(count, len(row_logits))
    highest = numpy.argpartition(-row_logits, count - 1)[:count]
    tokens = highest[numpy.lexsort((highest, -row_logits[highest]))].tolist()
    scores = score_row(row_logits, tokens)
    return [TokenLogprob(token, score.logprob) for token, score in zip(tokens, scores, strict=True)]


class GreedySampler:
    """Sample the most likely token, the lowest id if tied, as llama.cpp's chain does, but eight times as fast."""

    def __init__(self, logits: Callable[[int], Any], suppressed: Sequence[int]) -> None:
        self._logits = logits
        self._suppressed = suppressed

    def sample(self, row: int) -> int:
        row_logits = self._logits(row)
        token = int(row_logits.argmax())
        if token in self._suppressed:
            row_logits = row_logits.copy()  # `logprob` reads the model's own
            row_logits[list(self._suppressed)] = -numpy.inf
            token = int(row_logits.argmax())
        return token

    def accept(self, token: int) -> None:
        pass

    def close(self) -> None:
        pass


class GrammarSampler(LlamaSampler):
    """A sampler constrained by a grammar, given as a sampler of its own, from where the answer starts.

    The grammar is applied last and lazily: most sampled tokens fit it, and checking one token is cheap, while filtering
    the whole vocabulary is not. Only if a token does not fit, all tokens are filtered and one is sampled again. While
    the model reasons, tokens are sampled as without a grammar; markup and white space may precede the answer.

    Tokens in `banned` are not part of an answer. The `free` sampler samples the reasoning; None is this one, without
    the grammar.
    """

    def __init__(
        self,
        grammar: Any,
        chain: Any,
        batch_position: BatchPosition,
        vocabulary: Vocabulary,
        start: AnswerStart | None,
        banned: Sequence[int],
        free: Sampler | None,
    ) -> None:
        super().__init__(chain, batch_position)
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._start = start  # None once the grammar applies
        self._banned = banned
        self._free = free
        self._markup: deque[int] = deque()  # completes the markup that has begun
        self._data = numpy.zeros(vocabulary.size, [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._ids = numpy.arange(vocabulary.size)

    def sample(self, row: int) -> int:
        """Sample the next token that the grammar allows, if it applies; GrammarError if there is none."""
        start = self._start
        if start and start.stage == "thinking":
            return self._free.sample(row) if self._free else super().sample(row)
        row_logits = logits(*self.batch_position(row), len(self._data))
        token = self._draw(self._candidates(row_logits))
        if start is None or (passing := self._before_answer(start, token)) is None:
            return self._constrained(row_logits, token)
        self.accept(passing)
        return passing

    def _before_answer(self, start: AnswerStart, token: int) -> int | None:
        """The token that precedes the answer: the one drawn, or one of markup; None if the answer starts here."""
        if self._markup:
            return self._markup.popleft()
        text = self._vocabulary.piece(token, special=True).decode("utf-8", "replace")
        if start.stage == "undecided" and start.passes(token, text):
            return token
        held = continuation(self._vocabulary, (Text(start.held),)) if start.held else ()
        fits = all(accept_token(self._grammar, held_token) for held_token in held)
        if fits and (held or not start.rest):
            start.begin()
            self._start = None
            return None
        if not start.rest:
            raise GrammarError(
                f"the answer begins in the token that ends the reasoning, and the grammar rejects {start.held!r}",
                "ask again, or use --think off",
            )
        llama.llama_sampler_reset(self._grammar)
        self._markup += continuation(self._vocabulary, (Text(start.rest, trusted=True),))
        return self._markup.popleft()

    def _constrained(self, row_logits: Any, token: int) -> int:
        """The token, or another one if the grammar does not allow it; GrammarError if it allows none."""
        if token in self._banned or not is_allowed(self._grammar, token):
            allowed = self._candidates(row_logits)
            self._data["logit"][list(self._banned)] = float("-inf")
            llama.llama_sampler_apply(self._grammar, ctypes.byref(allowed))
            if self._data["logit"].max() == float("-inf"):
                raise GrammarError("the grammar rejects every possible next token", "check that it can be completed")
            token = self._draw(allowed)
        llama.llama_sampler_accept(self.chain, token)
        llama.llama_sampler_accept(self._grammar, token)
        return token

    def _candidates(self, row_logits: Any) -> Any:
        self._data["id"] = self._ids
        self._data["logit"] = row_logits
        data = self._data.ctypes.data_as(llama.llama_token_data_p)
        return llama.llama_token_data_array(data=data, size=len(self._data), selected=-1, sorted=False)

    def _draw(self, candidates: Any) -> int:
        llama.llama_sampler_apply(self.chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    def close(self) -> None:
        llama.llama_sampler_free(self._grammar)
        super().close()
