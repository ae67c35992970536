"""Draft tokens for speculative decoding: what followed the last tokens of a reply where they occurred before.

A drafter follows one such place in the prompt or the reply. Each sampled token shows whether the text there continued
in the same way, drafted or not, so acceptance is learned without evaluating anything in vain. Everything depends on
tokens alone: the same request gets the same draft tokens again.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from math import inf

from cerebrum_cli.core.token_ids import TOKEN_BYTES, TokenIds

# Duration of a decode step by its number of rows, in steps of one row: of Qwen2.5-Coder 0.5B in Q4_K_M on a CPU with
# AVX2, and no less with AVX-512 or 7B parameters. Between these numbers, kernels compute rows in vain. With more cores
# or a GPU, rows cost less, so what pays off by this table does so there.
STEP_COSTS = {4: 3.1, 6: 4.0, 8: 5.4, 16: 8.8, 32: 15.5, 64: 25.0}
MAX_DRAFT = max(STEP_COSTS) - 1

MIN_PROBABILITY = 0.75  # of a draft token to be worth a row
MIN_GAIN = 1.1  # expected tokens per time, over a step without draft tokens
NGRAM_LENGTHS = (5, 3)  # tokens that a new place has to match, longest first
MAX_MATCH = 32  # tokens; longer matches are not distinguished
MATCH_CLASSES = (5, 8, 16, MAX_MATCH)  # lengths from which acceptance is learned separately
PRIORS = (0.2, 0.4, 0.8, 0.95, 0.995)  # acceptance by class of the match
PRIOR_WEIGHT = 4  # tokens that a prior counts as


class Drafter:
    """Drafts the next tokens of one reply, and learns from those sampled how often it is right."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens = array("i", prompt)
        self._prompt_length = len(prompt)
        self._place: int | None = None  # position of the token in earlier text that is expected next
        self._match = 0  # number of equal tokens before that position and before the next one
        self._right = [prior * PRIOR_WEIGHT for prior in PRIORS]
        self._total = [PRIOR_WEIGHT] * len(PRIORS)

    def draft(self, reply: Sequence[int], limit: int) -> TokenIds:
        """Draft up to `limit` tokens after those of the reply: as many as promise the most tokens per time, or none."""
        for token in reply[len(self._tokens) - self._prompt_length :]:
            self._add(token)
        if self._place is None:
            self._look_up()
        if self._place is None:
            return ()
        length = self._best_length(min(limit, MAX_DRAFT))
        return self._continuation(self._place, length)

    def _add(self, token: int) -> None:
        """Add a sampled token, and learn whether it was the expected one."""
        if self._place is not None:
            match_class = bisect_right(MATCH_CLASSES, self._match)
            self._total[match_class] += 1
            if self._tokens[self._place] == token:
                self._right[match_class] += 1
                self._place += 1
                self._match = min(self._match + 1, MAX_MATCH)
            else:
                self._place = None
        self._tokens.append(token)

    def _look_up(self) -> None:
        """Find where the last tokens occurred before, and were continued."""
        for length in NGRAM_LENGTHS:
            place = self._last_occurrence(length)
            if place is not None:
                self._place = place
                self._match = self._matching_before(place)
                return

    def _last_occurrence(self, length: int) -> int | None:
        """Position after the last earlier occurrence of the last `length` tokens."""
        if len(self._tokens) <= length:
            return None
        packed = self._tokens.tobytes()
        ngram = packed[-length * TOKEN_BYTES :]
        end = len(packed) - TOKEN_BYTES
        while (start := packed.rfind(ngram, 0, end)) >= 0:
            if start % TOKEN_BYTES == 0:
                return start // TOKEN_BYTES + length
            end = start + len(ngram) - 1
        return None

    def _matching_before(self, place: int) -> int:
        tokens = self._tokens
        length = 0
        while length < min(place, MAX_MATCH) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        return length

    def _best_length(self, limit: int) -> int:
        probability, expected = 1.0, 1.0  # of the next token; tokens that the step gives
        best_length = 0
        best_value = MIN_GAIN
        for length in range(1, limit + 1):
            match_class = bisect_right(MATCH_CLASSES, self._match + length - 1)
            probability *= self._right[match_class] / self._total[match_class]
            if probability < MIN_PROBABILITY:
                break
            expected += probability
            value = expected / STEP_COSTS.get(1 + length, inf)
            if value > best_value:
                best_length = length
                best_value = value
        return best_length

    def _continuation(self, place: int, length: int) -> TokenIds:
        tokens = self._tokens[place : place + length].tolist()
        while len(tokens) < length:  # a repetition continues with what was just guessed
            period = len(self._tokens) - place
            tokens.append(tokens[-period])
        return tuple(tokens)
