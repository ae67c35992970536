"""The turns of a server's reply, each a request of its own.

Servers know no controls, and their grammars apply from the first token: so a turn ends where a control has intervened,
and where the answer starts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.engine.control import AnswerStart, Force, Intervention, Upcoming
from cerebrum_cli.engine.protocols import Vocabulary
from cerebrum_cli.engine.remote.client import RefusedRequestError
from cerebrum_cli.engine.sequence import Request, continuation

ENDED = -1  # the token that ends a reply, whatever it is
OVERHANG = "the answer begins in the token that ends the reasoning, so the server cannot apply the grammar"


class Turns:
    """The turns of one reply; `start` is the number of tokens before the running one, which an `intervention` ends.

    Under a grammar, turns are asked for without it until the answer starts: its first token ends the turn, and is asked
    for again. A whole turn comes without a chance to intervene before, so it is asked for no longer than its controls
    need to decide.
    """

    def __init__(self, request: Request, vocabulary: Vocabulary) -> None:
        self.start = 0
        self.intervention: Intervention | None = None
        self._end: int | None = None  # up to which the running one is asked for
        self._request, self._vocabulary = request, vocabulary
        self._controls = [create() for create in request.controls]
        self._constraint = request.constraint

    def next_request(self, tokens: Sequence[int], generated: int) -> Request:
        """The request that continues the reply after these tokens, as far as they are known of those generated."""
        self.start, self.intervention, request = generated, None, self._request
        grammar = None if self.free_start else request.grammar  # of one turn only: it would start again in another
        horizons = [control.horizon for control in self._controls if control.horizon is not None]
        limits = request.params.max_tokens, None if request.stream or grammar else min(horizons, default=None)
        self._end = min((limit for limit in limits if limit is not None and limit > generated), default=None)
        params = replace(request.params, max_tokens=None if self._end is None else self._end - generated)
        prompt = array("i", (*request.prompt_tokens, *tokens)) if tokens else request.prompt_tokens
        start = None if grammar else request.answer_start
        return replace(request, prompt_tokens=prompt, params=params, grammar=grammar, answer_start=start)

    @property
    def free_start(self) -> AnswerStart | None:
        """Detector of the start of the answer; None once the grammar applies, and without one."""
        return None if self._constraint is None or self._constraint.applies else self._constraint.start

    def starts_answer(self, token: int) -> bool:
        """Whether a token does not precede the answer, so that the running turn ends before it."""
        start = self.free_start
        if start is None or start.stage == "thinking":
            return False
        piece = b"" if token == ENDED else self._vocabulary.piece(token, special=True)
        if start.passes(token, piece.decode("utf-8", "replace")):
            return False
        self.intervention = Force(continuation(self._vocabulary, (Text(start.rest, trusted=True),)))
        if not start.rest:
            start.begin()
        return True

    def lets_pass(self, upcoming: Upcoming) -> int:
        """Number of the next tokens after which nothing intervenes, and the answer does not start."""
        if self._constraint and self._constraint.applies:
            return len(upcoming.tokens)
        passed = min((control.lets_pass(upcoming) for control in self._controls), default=len(upcoming.tokens))
        return min(passed, self.free_start.lets_pass(upcoming)) if self.free_start else passed

    def feed(self, tokens: Sequence[int], text: str, pieces: Iterable[bytes], is_forced: bool = False) -> None:
        """Add tokens with these pieces, which complete a text; controls intervene unless the tokens are forced.

        Raises RefusedRequestError if one token both ends what precedes the answer and begins the answer.
        """
        if self._constraint and self._constraint.applies:
            return
        for control in self._controls:
            control.feed(tokens, text)
        start = self.free_start
        if start:
            start.feed(tokens, b"".join(pieces).decode("utf-8", "replace"))
            if start.stage == "answer" and start.held:
                raise RefusedRequestError(GrammarError(OVERHANG, "ask again, or use --think off"))
        if is_forced:
            return
        if start and start.stage == "answer":
            self.intervention = Force(())
        else:
            interventions = (control.intervene() for control in self._controls)
            self.intervention = next((intervention for intervention in interventions if intervention), None)

    def was_shortened(self, generated: int) -> bool:
        """Whether the running turn ended where no more tokens were asked for."""
        return self._end is not None and self._end <= generated
