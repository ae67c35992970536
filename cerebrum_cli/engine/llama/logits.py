"""What reads the logits of the last decode with numpy: scores, and sampling that is greedy or follows a grammar.

A single answer does without: importing numpy takes longer than sampling all its tokens.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from math import inf, log
from typing import TYPE_CHECKING, Any

import numpy

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import TokenLogprob
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.engine.control import Constraint
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.sampler import Chain
from cerebrum_cli.engine.sequence import continuation
from cerebrum_cli.engine.step import TokenScore

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from cerebrum_cli.engine.backend import Sampler, Vocabulary

COMPLETABLE = "check that it can be completed"
MARGINS = (4.0, 8.0, 10.0, 12.0, 16.0, inf)  # below the highest logit, until they have enough tokens


def logits(context: Any, index: int, size: int) -> Any:
    """View a row of `size` logits in llama.cpp's memory, valid until the next decode."""
    address = ctypes.addressof(llama.llama_get_logits_ith(context, index).contents)
    row: Any = (ctypes.c_float * size).from_address(address)
    return numpy.ndarray(size, numpy.float32, row)


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


class Candidates:
    """Tokens with their logits, as samplers take them, in one buffer: sequences are sampled one after another.

    It takes 16 bytes for each token of the vocabulary (SAMPLING_BYTES in engine/memory.py).
    """

    def __init__(self, size: int) -> None:
        self._tokens = numpy.arange(size, dtype=numpy.int32)
        self._data = numpy.empty(size, [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._address = self._data.ctypes.data_as(llama.llama_token_data_p)
        self.logits = self._data["logit"]  # by token, as long as no sampler has sorted those of `fill`

    def fill(self, row_logits: Any, tokens: Any = None, is_sorted: bool = False) -> Any:
        """llama.cpp's array of some tokens, or of all."""
        if tokens is None:
            tokens = self._tokens
            token_logits = row_logits
        else:
            token_logits = row_logits[tokens]
        size = len(tokens)
        self._data["id"][:size] = tokens
        self.logits[:size] = token_logits
        return llama.llama_token_data_array(data=self._address, size=size, selected=-1, sorted=is_sorted)

    def likeliest(self, row_logits: Any, params: SamplingParams) -> Any:
        """The tokens that min-p may keep, or those that top-p keeps, sorted as it sorts them.

        llama.cpp would sort all tokens for top-p: 16 ms for 152,000.
        """
        highest = row_logits.max()
        if not numpy.isfinite(highest):  # of a damaged model
            return self.fill(row_logits)
        if params.top_p < 1:
            weights = numpy.exp(row_logits - highest)
            least = params.top_p * weights.sum(dtype=numpy.float64)
            for margin in MARGINS:
                tokens = numpy.flatnonzero(row_logits >= highest - margin)
                if weights[tokens].sum(dtype=numpy.float64) >= least:
                    tokens = tokens[numpy.argsort(-row_logits[tokens], kind="stable")]
                    kept = numpy.searchsorted(weights[tokens].cumsum(dtype=numpy.float64), least) + 1
                    return self.fill(row_logits, tokens[:kept], is_sorted=True)
        if params.min_p > 0:
            return self.fill(row_logits, numpy.flatnonzero(row_logits >= highest + log(params.min_p) - 0.01))
        return self.fill(row_logits)


@dataclass
class ChainSampler(Chain):
    """A chain that shares its candidates with those of other sequences.

    With `params`, it gets only the likeliest of them, from which its chain samples without top-k and top-p.
    """

    logits: Callable[[int], Any]
    candidates: Candidates
    params: SamplingParams | None

    def sample(self, row: int) -> int:
        token = self.draw(self.logits(row))
        self.accept(token)
        return token

    def draw(self, row_logits: Any) -> int:
        """Choose a token, without accepting it."""
        params = self.params
        candidates = self.candidates
        array = candidates.likeliest(row_logits, params) if params else candidates.fill(row_logits)
        llama.llama_sampler_apply(self.chain, ctypes.byref(array))
        return int(array.data[array.selected].id)


@dataclass
class GreedySampler:
    """Sample the most likely token, the lowest id if tied, as llama.cpp's chain does, but eight times as fast."""

    logits: Callable[[int], Any]

    def sample(self, row: int) -> int:
        return int(self.logits(row).argmax())

    def accept(self, token: int) -> None:
        pass

    def close(self) -> None:
        pass


class Matcher:
    """llguidance's matcher of the answer's bytes, and one of its tokens, which masks need and which takes long to make.

    Most tokens that are drawn fit, and many follow from those before, so that most answers need few masks or none.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, compile: Callable[[], LLMatcher]) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._compile = compile
        self._unread: list[int] = []  # tokens that the matcher of tokens does not know yet

    @cached_property
    def _token_matcher(self) -> LLMatcher:
        return self._compile().deep_copy()

    def accept(self, token: int) -> bool:
        if self._vocabulary.is_eog(token):
            return bool(self._matcher.is_accepting())
        data = list(self._vocabulary.piece(token))
        count = self._matcher.try_consume_tokens(data)
        if data and count == len(data):
            self._unread.append(token)
            return True
        self._matcher.rollback(count)
        return False

    def allowed(self, row_logits: Any) -> Any:
        matcher = self._token_matcher
        matcher.consume_tokens(self._unread)
        self._unread.clear()
        bits = numpy.frombuffer(matcher.compute_bitmask(), numpy.uint8)
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0]
            raise GrammarError(f"the grammar rejects every possible next token: {reason}", COMPLETABLE)
        is_allowed = numpy.unpackbits(bits, count=len(row_logits), bitorder="little").view(bool)
        return numpy.where(is_allowed, row_logits, numpy.float32(-inf))

    def accept_forced(self) -> TokenIds:
        """Continue with the text that must follow, up to its last token, which may end differently."""
        text = self._matcher.compute_ff_bytes().decode("utf-8", "ignore")
        tokens = continuation(self._vocabulary, (Text(text),))[:-1] if text else ()
        return tuple(token for token in tokens if self.accept(token))

    def reset(self) -> None:
        self._matcher.reset()
        self._unread.clear()


class GrammarSampler:
    """A sampler constrained by a grammar, from where the answer starts.

    The grammar is applied last and lazily: most sampled tokens fit it, and checking one token is cheap, while filtering
    the whole vocabulary is not. Only if a token does not fit, all tokens are filtered and one is sampled again. While
    the model reasons, tokens are sampled as without a grammar; markup and white space may precede the answer.

    The `chain` draws all tokens, but the `free` sampler those of the reasoning if there is one.
    """

    def __init__(
        self,
        chain: ChainSampler,
        matcher: Matcher,
        vocabulary: Vocabulary,
        constraint: Constraint,
        free: Sampler | None,
    ) -> None:
        self._chain = chain
        self.accept = chain.accept
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._text = constraint.text
        self._forced = constraint.forced
        self._applies = False
        self._banned = [token for token in constraint.markup if not vocabulary.is_eog(token)]
        self._free = free
        self._markup: deque[int] = deque()  # completes the markup that has begun

    def sample(self, row: int) -> int:
        """Sample the next token that the grammar allows, if it applies; GrammarError if there is none."""
        if self._text.stage == "thinking":
            return (self._free or self._chain).sample(row)
        row_logits = self._chain.logits(row)
        token = self._chain.draw(row_logits)
        if self._applies or (passing := self._before_answer(token)) is None:
            return self._constrained(row_logits, token)
        self.accept(passing)
        return passing

    def _before_answer(self, token: int) -> int | None:
        """The token that precedes the answer: the one drawn, or one of markup; None if the answer starts here."""
        if self._markup:
            return self._markup.popleft()
        text = self._text
        piece = self._vocabulary.piece(token, special=True).decode("utf-8", "replace")
        if text.stage == "undecided" and text.passes(token, piece):
            return token
        held = continuation(self._vocabulary, (Text(text.held),)) if text.held else ()
        fits = all(map(self._matcher.accept, held))
        if fits and (held or not text.rest):
            text.begin_answer()
            self._applies = True
            return self._first_forced()
        if not text.rest:
            raise GrammarError(
                f"the answer begins in the token that ends the reasoning, and the grammar rejects {text.held!r}",
                "ask again, or use --think off",
            )
        self._matcher.reset()
        self._markup += continuation(self._vocabulary, (Text(text.rest, trusted=True),))
        return self._markup.popleft()

    def _first_forced(self) -> int | None:
        """The first of the tokens that begin every answer, if there are any."""
        if self._forced is None:
            return None
        self._forced.extend(self._matcher.accept_forced())
        return self._forced.popleft() if self._forced else None

    def _constrained(self, row_logits: Any, token: int) -> int:
        """The token, or another one if the grammar does not allow it; GrammarError if it allows none."""
        if token in self._banned or not self._matcher.accept(token):
            allowed = self._matcher.allowed(row_logits)
            allowed[self._banned] = -numpy.inf
            if not allowed.max() > -numpy.inf:  # or not a number
                raise GrammarError("the grammar rejects every possible next token", COMPLETABLE)
            token = self._chain.draw(allowed)
            self._matcher.accept(token)
        self.accept(token)
        if self._forced is not None:
            self._forced.extend(self._matcher.accept_forced())
        return token

    def close(self) -> None:
        self._chain.close()
