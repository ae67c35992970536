"""Report the probability of each token that followed a prompt, and the likeliest tokens in its place."""

from __future__ import annotations

from collections.abc import Iterable

from cerebrum_cli.core.events import AlternativesEvent, TokenLogprob
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.sequence import Sequence


def report_tokens(backend: Backend, sequence: Sequence, rows: Iterable[int]) -> None:
    """Report the next tokens of an inspection, each by the row of the last decode that predicts it."""
    inspection = sequence.request.inspection
    assert inspection is not None
    for row in rows:
        token, likeliest = inspection.tokens[sequence.inspected], backend.top_tokens(row, inspection.likeliest)
        given = TokenLogprob(token, backend.logprob(row, token))
        sequence.emit(AlternativesEvent(sequence.id, sequence.inspected, given, tuple(likeliest)))
        sequence.inspected += 1
