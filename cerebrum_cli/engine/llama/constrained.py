"""Sampling of answers that follow a schema or a grammar."""

from __future__ import annotations

from collections import deque
from functools import cached_property
from itertools import takewhile
from math import inf
from typing import TYPE_CHECKING, Any

import numpy
from llguidance import LLMatcher

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.vocabulary import continuation
from cerebrum_cli.engine.llama.logits import ChainSampler
from cerebrum_cli.engine.llama.vocabulary import LlamaVocabulary
from cerebrum_cli.engine.repetition import repeats_list
from cerebrum_cli.engine.step import Constraint
from cerebrum_cli.grammars.guidance import compile_grammar

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Sampler

COMPLETABLE = "check that it can be completed"


class Matcher:
    """Matches the bytes of an answer. A second matcher, of tokens, is slow to build, and made once a mask is needed.

    Most tokens that are drawn fit, and many follow from those before, so that most answers need few masks or none.
    """

    def __init__(self, grammar: Grammar, vocabulary: LlamaVocabulary) -> None:
        self._grammar = grammar
        self._matcher = compile_grammar(grammar)
        self._vocabulary = vocabulary
        self._unread: list[int] = []  # tokens that the matcher of tokens does not know yet

    @cached_property
    def _token_matcher(self) -> LLMatcher:
        return compile_grammar(self._grammar, self._vocabulary.guidance_tokenizer)

    def accept(self, token: int) -> bool:
        if self._vocabulary.is_eog(token):
            return bool(self._matcher.is_accepting())
        data = list(self._vocabulary.piece(token))
        count = self._matcher.try_consume_tokens(data)
        if data and count == len(data):
            self._unread.append(token)
            return True
        self._require_working(self._matcher)
        self._matcher.rollback(count)
        return False

    @staticmethod
    def _require_working(matcher: LLMatcher) -> None:
        """Raise GrammarError for a matcher that has failed, as at a limit."""
        if matcher.is_error():
            reason = matcher.get_error().partition("\n")[0]
            raise GrammarError(f"the grammar rejects every possible next token: {reason}", COMPLETABLE)

    def allowed(self, row_logits: Any) -> Any:
        matcher = self._token_matcher
        matcher.consume_tokens(self._unread)
        self._unread.clear()
        bits = numpy.frombuffer(matcher.compute_bitmask(), numpy.uint8)
        self._require_working(matcher)
        is_allowed = numpy.unpackbits(bits, count=len(row_logits), bitorder="little").view(bool)
        return numpy.where(is_allowed, row_logits, numpy.float32(-inf))

    def accept_forced(self) -> TokenIds:
        """Continue with the text that must follow, up to its last token, which may end differently."""
        matcher = self._matcher.deep_copy()  # it fails if the text has no end
        text = matcher.compute_ff_bytes().decode(errors="ignore")
        if not text or matcher.is_error():
            return ()
        tokens = continuation(self._vocabulary, (Text(text),))[:-1]
        return tuple(takewhile(self.accept, tokens))

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
        vocabulary: LlamaVocabulary,
        constraint: Constraint,
        free: Sampler | None,
    ) -> None:
        self._chain = chain
        self.accept = chain.accept
        self.close = chain.close
        self._matcher = Matcher(constraint.grammar, vocabulary)
        self._vocabulary = vocabulary
        self._text = constraint.text
        self._forced = constraint.forced
        self._applies = False
        self._free = free
        self._closes_lists = constraint.closes_lists
        self._answer = ""  # whose characters are bytes
        self._queued: deque[int] = deque()  # completes the markup that has begun

    def sample(self, row: int) -> int:
        """Sample the next token that the grammar allows, if it applies; GrammarError if there is none."""
        if self._text.stage == "thinking":
            return (self._free or self._chain).sample(row)
        if self._queued:
            token = self._queued.popleft()
            self.accept(token)
            return token
        row_logits = self._chain.logits(row)
        token = self._chain.draw(row_logits)
        if self._applies or (passing := self._before_answer(token)) is None:
            return self._constrained(row_logits, token)
        self.accept(passing)
        return passing

    def _before_answer(self, token: int) -> int | None:
        """The token that precedes the answer: the one drawn, or one of markup; None if the answer starts here."""
        text = self._text
        piece = self._vocabulary.piece(token, special=True).decode(errors="replace")
        if text.stage == "undecided" and text.precedes_answer(token, piece):
            return token
        held = continuation(self._vocabulary, (Text(text.answer_start),)) if text.answer_start else ()
        fits = all(map(self._matcher.accept, held))
        if fits and (held or not text.missing_markup):
            text.begin_answer()
            self._applies = True
            self._read(held)
            self._force()
            return self._forced.popleft() if self._forced else None
        if not text.missing_markup:
            problem = "the answer begins in the token that ends the reasoning, and the grammar rejects"
            raise GrammarError(f"{problem} {text.answer_start!r}", "ask again, or use --think off")
        self._matcher.reset()
        self._queued += continuation(self._vocabulary, (Text(text.missing_markup, trusted=True),))
        return self._queued.popleft()

    def _force(self) -> None:
        tokens = self._matcher.accept_forced()
        self._read(tokens)
        self._forced.extend(tokens)

    def _read(self, tokens: TokenIds) -> None:
        for token in tokens:
            self._answer += self._vocabulary.piece(token).decode("latin-1")

    def _constrained(self, row_logits: Any, token: int) -> int:
        """The token, or another one if the grammar does not allow it; GrammarError if it allows none.

        So that a list does not repeat its last entries without end, no comma follows where only its end is new.
        """
        if self._repeats_list(token) or not self._matcher.accept(token):
            allowed = self._matcher.allowed(row_logits)
            if allowed.max() > -inf:  # False for NaN, too
                token = self._chain.draw(allowed)
            token = self._without_commas(token, allowed)
            if not self._matcher.accept(token):
                raise GrammarError("the grammar rejects every possible next token", COMPLETABLE)
        self.accept(token)
        self._read((token,))
        self._force()
        return token

    def _without_commas(self, token: int, allowed: Any) -> int:
        """The token, or the next one drawn that lets no list repeat itself; the token, too, if there is none."""
        drawn = token
        while self._repeats_list(drawn):
            allowed[drawn] = -inf
            if allowed.max() == -inf:
                return token
            drawn = self._chain.draw(allowed)
            self._text.has_closed_list = True
        return drawn

    def _repeats_list(self, token: int) -> bool:
        return self._closes_lists and repeats_list(self._answer, self._vocabulary.piece(token).decode("latin-1"))
