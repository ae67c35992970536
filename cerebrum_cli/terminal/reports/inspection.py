"""The table of a reply's least certain tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import exp

from cerebrum_cli.inference.inspection import CERTAIN, Candidate, UncertainToken
from cerebrum_cli.terminal.streams import Streams, columns
from cerebrum_cli.terminal.tables import PIPE_WIDTH, print_table, table_lines

HEADINGS = ("position", "after", "token", "prob.", "alternatives")
DROPPED = ("position", "after")  # from a narrow table, in this order
MAX_TEXT = 16  # characters of a token


def print_uncertain(streams: Streams, tokens: Sequence[UncertainToken], to_error: bool = False) -> None:
    """Print the least certain tokens of a reply, each with its alternatives, on standard output or error."""
    if not tokens:
        streams.info(f"no token of the reply had a probability below {CERTAIN:.0%}")
        return
    rows = [
        (
            each.position,
            each.before,
            quoted(each.given.text),
            percentage(each.given),
            ", ".join(f"{quoted(other.text)} {percentage(other)}" for other in each.alternatives),
        )
        for each in tokens
    ]
    if not to_error:
        print_table(streams, HEADINGS, rows, "alternatives", DROPPED)
        return
    width = columns(streams.err) if streams.err_is_terminal else PIPE_WIDTH
    for line in table_lines(HEADINGS, rows, width, "alternatives", DROPPED):
        streams.info(line)


def quoted(text: str) -> str:
    """The text of a token, in which white space is visible."""
    return json.dumps(text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…", ensure_ascii=False)


def percentage(candidate: Candidate) -> str:
    """The probability of a token."""
    probability = exp(candidate.logprob)
    return f"{probability:.0%}" if probability >= 0.01 else "<1%"
