"""llama.cpp's samplers as a chain in its default order.

These are logit biases, penalties, DRY, top-n-sigma, top-k, typical-p, top-p, min-p, temperature and distribution. At
temperature 0, the likeliest token follows DRY.

A grammar is applied last and lazily: most sampled tokens fit it, and checking one token is cheap, while filtering the
whole vocabulary is not. Only if a token does not fit, all tokens are filtered and one is sampled again. While the model
reasons, tokens are sampled as without a grammar; markup and white space may precede the answer.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import TokenLogprob
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.backend import Sampler, TokenScore, Vocabulary, continuation
from cerebrum_cli.engine.control import AnswerStart, Constraint
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.grammar import accept_token, is_allowed

PENALTY_WINDOW = 64  # tokens, llama.cpp's own default
LEAST_P = 1e-30  # of a token for typical-p, whose entropy is not a number with a probability of 0

BatchPosition = Callable[[int], tuple[Any, int]]
"""The current context, which samplers outlive, and the index of a row of the last decode in its batch."""


class SamplerChains:
    """Builds the sampler chains of a model's sequences.

    A DRY sampler reads the whole vocabulary for its sequence breakers, so the latest is saved, and copied for others.
    """

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab
        self._dry: tuple[tuple[Any, ...], Any] | None = None

    def create(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> Any:
        """Create a chain that has accepted the end of the prompt, as far as penalties look back."""
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in (*self._logit_samplers(params), *_selection(params, seed)):
            llama.llama_sampler_chain_add(chain, sampler)
        window = max(params.has_penalties * PENALTY_WINDOW, params.has_dry * params.dry_penalty_last_n)
        for token in prompt[-window:] if window else ():
            llama.llama_sampler_accept(chain, token)
        return chain

    def _logit_samplers(self, params: SamplingParams) -> Iterator[Any]:
        size = llama.llama_vocab_n_tokens(self._vocab)
        if params.logit_bias:
            biases = [llama.llama_logit_bias(token=int(each.token), bias=each.bias) for each in params.logit_bias]
            array = (llama.llama_logit_bias * len(biases))(*biases)
            yield llama.llama_sampler_init_logit_bias(size, len(biases), array)
        if params.has_penalties:
            penalties = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
            yield llama.llama_sampler_init_penalties(size, PENALTY_WINDOW, *penalties)
        if params.has_dry:
            yield self._dry_sampler(params)

    def _dry_sampler(self, params: SamplingParams) -> Any:
        numbers = (params.dry_multiplier, params.dry_base, params.dry_allowed_length, params.dry_penalty_last_n)
        key = (*numbers, params.dry_breakers)
        if self._dry is None or self._dry[0] != key:
            self.close()
            texts = [text.encode("utf-8", "surrogatepass") for text in params.dry_breakers]
            breakers = (ctypes.c_char_p * len(texts))(*texts)
            self._dry = key, llama.llama_sampler_init_dry(self._vocab, *numbers, breakers, len(texts))
        return llama.llama_sampler_clone(self._dry[1])

    def close(self) -> None:
        if self._dry:
            llama.llama_sampler_free(self._dry[1])
            self._dry = None


class LlamaSampler:
    """The sampler chain of one sequence."""

    def __init__(self, chain: Any, batch_position: BatchPosition) -> None:
        self._chain = chain
        self._batch_position = batch_position

    def sample(self, row: int) -> int:
        return int(llama.llama_sampler_sample(self._chain, *self._batch_position(row)))

    def accept(self, token: int) -> None:
        llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        llama.llama_sampler_free(self._chain)


class GreedySampler:
    """Sample the most likely token, the lowest id if tied, as llama.cpp's chain does, but eight times as fast.

    Only for batches: importing numpy takes longer than sampling all tokens of one answer.
    """

    def __init__(self, logits: Callable[[int], Any]) -> None:
        self._logits = logits

    def sample(self, row: int) -> int:
        return int(self._logits(row).argmax())

    def accept(self, token: int) -> None:
        """Do nothing: no sampler depends on earlier tokens."""

    def close(self) -> None:
        """Do nothing: there are no native samplers."""


class GrammarSampler(LlamaSampler):
    """A sampler constrained by a grammar, given as a sampler of its own, from where the answer starts.

    The `free` sampler samples what precedes the answer.
    """

    def __init__(
        self,
        grammar: Any,
        chain: Any,
        batch_position: BatchPosition,
        vocabulary: Vocabulary,
        constraint: Constraint,
        free: Sampler,
    ) -> None:
        import numpy

        super().__init__(chain, batch_position)
        self._grammar = grammar
        self._vocabulary = vocabulary
        self._start = constraint.start  # None once the grammar applies
        self._banned = [token for token in constraint.markup if not vocabulary.is_eog(token)]
        self._free = free
        self._markup: deque[int] = deque()  # completes the markup that has begun
        self._data = numpy.zeros(vocabulary.size, [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._ids = numpy.arange(vocabulary.size)

    def sample(self, row: int) -> int:
        """Sample the next token that the grammar allows, if it applies; GrammarError if there is none."""
        start = self._start
        if start and start.stage == "thinking":
            return self._free.sample(row)
        row_logits = logits(*self._batch_position(row), len(self._data))
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
        fits = all(accept_token(self._grammar, each) for each in held)
        if fits and (held or not start.rest):
            start.begin()
            self._start = None
            return None
        if not start.rest:
            problem = f"the answer begins in the token that ends the reasoning, and the grammar rejects {start.held!r}"
            raise GrammarError(problem, "ask again, or use --think off")
        llama.llama_sampler_reset(self._grammar)
        self._markup += continuation(self._vocabulary, (Text(start.rest, trusted=True),))
        return self._markup.popleft()

    def _constrained(self, row_logits: Any, token: int) -> int:
        """The token, or another one if the grammar does not allow it; GrammarError if it allows none."""
        if token in self._banned or not is_allowed(self._grammar, token):
            allowed = self._candidates(row_logits)
            self._data["logit"][self._banned] = float("-inf")
            llama.llama_sampler_apply(self._grammar, ctypes.byref(allowed))
            if self._data["logit"].max() == float("-inf"):
                raise GrammarError("the grammar rejects every possible next token", "check that it can be completed")
            token = self._draw(allowed)
        llama.llama_sampler_accept(self._chain, token)
        llama.llama_sampler_accept(self._grammar, token)
        return token

    def _candidates(self, row_logits: Any) -> Any:
        self._data["id"] = self._ids
        self._data["logit"] = row_logits
        data = self._data.ctypes.data_as(llama.llama_token_data_p)
        return llama.llama_token_data_array(data=data, size=len(self._data), selected=-1, sorted=False)

    def _draw(self, candidates: Any) -> int:
        llama.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    def close(self) -> None:
        llama.llama_sampler_free(self._grammar)
        super().close()


def logits(context: Any, index: int, size: int) -> Any:
    """View a row of `size` logits in llama.cpp's memory, valid until the next decode."""
    from numpy.ctypeslib import as_array

    return as_array(llama.llama_get_logits_ith(context, index), (size,))


def score_row(row_logits: Any, tokens: Iterable[int]) -> list[TokenScore]:
    from numpy import exp, log

    argmax = int(row_logits.argmax())
    highest = row_logits[argmax]
    log_total = float(highest) + float(log(exp(row_logits - highest).sum()))
    return [TokenScore(float(row_logits[token]) - log_total, token == argmax) for token in tokens]


def top_tokens(row_logits: Any, count: int) -> list[TokenLogprob]:
    """The tokens with the highest logits in a row, the lowest id first if tied."""
    from numpy import argpartition, lexsort

    count = min(count, len(row_logits))
    highest = argpartition(-row_logits, count - 1)[:count]
    tokens = highest[lexsort((highest, -row_logits[highest]))].tolist()
    scores = score_row(row_logits, tokens)
    return [TokenLogprob(token, score.logprob) for token, score in zip(tokens, scores, strict=True)]


def _selection(params: SamplingParams, seed: int) -> Iterator[Any]:
    if params.temperature <= 0:
        yield llama.llama_sampler_init_greedy()
        return
    if params.top_n_sigma > 0:
        yield llama.llama_sampler_init_top_n_sigma(params.top_n_sigma)
    yield llama.llama_sampler_init_top_k(params.top_k)
    if params.typical_p < 1:
        yield llama.llama_sampler_init_min_p(LEAST_P, 1)
        yield llama.llama_sampler_init_typical(params.typical_p, 1)
    yield llama.llama_sampler_init_top_p(params.top_p, 1)
    yield llama.llama_sampler_init_min_p(params.min_p, 1)
    yield llama.llama_sampler_init_temp(params.temperature)
    yield llama.llama_sampler_init_dist(seed)
