"""The turns of a server's reply, each a request of its own.

Servers know no controls, and their grammars apply from the first token: so a turn ends where a control has intervened,
and where the answer starts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import Forced, Timings
from cerebrum_cli.engine.backend import Vocabulary, continuation
from cerebrum_cli.engine.control import AnswerStart, Constraint, Controls, Force, Intervention, Upcoming
from cerebrum_cli.engine.remote.client import RefusedRequestError
from cerebrum_cli.engine.remote.kind import ReplyEnd
from cerebrum_cli.engine.sequence import Request

ENDED = -1, ""  # the token that ends a reply, whatever it is
OVERHANG = "the answer begins in the token that ends the reasoning, so the server cannot apply the grammar"


@dataclass(slots=True)
class Turns:
    """The turns of one reply.

    With a `constraint`, turns are asked for without its grammar until the answer starts: its first token ends the turn,
    and is asked for again. A whole turn comes without a chance to intervene before, so it is asked for no longer than
    its controls need to decide.
    """

    request: Request
    vocabulary: Vocabulary
    controls: Controls  # which have fed on all tokens so far
    constraint: Constraint | None
    start: int = 0  # of the running turn: tokens of the reply before it
    end: int | None = None  # up to which it is asked for
    intervention: Intervention | None = None  # which ends it
    forced: list[Forced] = field(default_factory=list)
    ends: list[ReplyEnd] = field(default_factory=list)

    def next_request(self, tokens: Sequence[int] = (), generated: int = 0) -> Request:
        """The request that continues the reply after these tokens, as far as they are known of those generated."""
        self.start, self.intervention = generated, None
        grammar = None if self.free_start else self.request.grammar  # of one turn only: it would start again in another
        request = self.request
        limits = request.params.max_tokens, None if request.stream or grammar else self.controls.horizon
        self.end = min((each for each in limits if each is not None and each > generated), default=None)
        params = replace(request.params, max_tokens=None if self.end is None else self.end - generated)
        prompt = array("i", (*request.prompt_tokens, *tokens)) if tokens else request.prompt_tokens
        start = None if grammar else request.answer_start
        return replace(request, prompt_tokens=prompt, params=params, grammar=grammar, answer_start=start)

    @property
    def free_start(self) -> AnswerStart | None:
        """What decides where the answer starts; None once the grammar applies, and without one."""
        return None if self.constraint is None or self.constraint.applies else self.constraint.start

    def starts_answer(self, token: int, text: str) -> bool:
        """Whether a token does not precede the answer, so that the running turn ends before it."""
        start = self.free_start
        if start is None or start.stage == "thinking" or start.passes(token, text):
            return False
        rest = (Text(start.rest, trusted=True),) if start.rest else ()
        self.intervention = Force(continuation(self.vocabulary, rest) if rest else ())
        if not rest:
            start.begin()
        return True

    def lets_pass(self, upcoming: Upcoming) -> int:
        """For how many of the next tokens nothing intervenes, and the answer does not start."""
        if self.constraint and self.constraint.applies:
            return len(upcoming.tokens)
        passed = self.controls.lets_pass(upcoming)
        return min(passed, self.free_start.lets_pass(upcoming)) if self.free_start else passed

    def feed(self, tokens: Sequence[int], text: str, spelled: str, is_forced: bool = False) -> None:
        """Add tokens that complete a text, and alone are `spelled` so; controls intervene unless they are forced.

        Raises RefusedRequestError if one token both ends what precedes the answer and begins the answer.
        """
        if self.constraint and self.constraint.applies:
            return
        self.controls.feed(tokens, text)
        if start := self.free_start:
            start.feed(tokens, spelled)
            if start.stage == "answer" and start.held:
                raise RefusedRequestError(GrammarError(OVERHANG, "ask again, or use --think off"))
        if not is_forced:
            has_started = self.constraint and self.constraint.applies
            self.intervention = Force(()) if has_started else self.controls.intervene()

    def was_shortened(self, generated: int) -> bool:
        """Whether the running turn ended only because no more tokens were asked for."""
        limit = self.request.params.max_tokens
        return self.end is not None and self.end <= generated and (limit is None or generated < limit)

    def add_end(self, end: ReplyEnd) -> ReplyEnd:
        """The end of a turn, with the cached tokens of the first, and the times of all if the server states them."""
        self.ends.append(end)
        timings = [each.timings for each in self.ends]
        total = Timings()
        if all(each.decode_s for each in timings):
            total = replace(
                timings[0],
                decode_s=sum(each.prefill_s + each.decode_s for each in timings) - timings[0].prefill_s,
                draft_n=sum(each.draft_n for each in timings),
                draft_n_accepted=sum(each.draft_n_accepted for each in timings),
            )
        return replace(end, cached_tokens=self.ends[0].cached_tokens, timings=total)
