"""Lists of sessions and repositories, and the least certain tokens of a reply."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from math import exp
from typing import TYPE_CHECKING

from cerebrum_cli.core.inspection import CERTAIN
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import Row, excerpt, model_name, print_columns, print_table, speed_text, updated

if TYPE_CHECKING:
    from cerebrum_cli.core import inspection

UNCERTAIN = ("position", "after", "token", "prob.", "alternatives")
MAX_TOKEN_TEXT = 16  # characters
LISTED = 20  # sessions that a terminal shows unless asked for more


print_sessions = partial(
    print_columns,
    {
        "name": "name",
        "messages": "messages",
        "updated": updated,
        "model": model_name,
        "first message": lambda row: excerpt(row["first"]),
    },
    shorten="first message",
    drop=("model", "messages", "updated"),
)


def print_latest(streams: Streams, rows: Sequence[Row], number: int | None = None) -> None:
    """Print the latest sessions of all, which come first: in a pipe all, and the latest last on a terminal."""
    if not rows:
        streams.report("no saved sessions; cerebrum ask and cerebrum chat create them")
    elif not streams.out_is_terminal:
        print_sessions(streams, rows[:number])
    else:
        listed = rows[: number or LISTED]
        print_sessions(streams, listed[::-1])
        if number is None and len(listed) < len(rows):
            streams.report(f"the latest {LISTED} of {len(rows)}; cerebrum sessions list --all lists them all")


def print_uncertain(streams: Streams, tokens: Sequence[inspection.UncertainToken]) -> None:
    if not tokens:
        streams.info(f"no token of the reply had a probability below {CERTAIN:.0%}")
        return
    rows = []
    for token in tokens:
        others = ", ".join(f"{quoted(choice.text)} {percentage(choice)}" for choice in token.alternatives)
        rows.append((token.position, token.before, quoted(token.given.text), percentage(token.given), others))
    print_table(streams, UNCERTAIN, rows, shorten="alternatives", drop=("position", "after"))


def quoted(text: str) -> str:
    if len(text) > MAX_TOKEN_TEXT:
        text = f"{text[:MAX_TOKEN_TEXT]}…"
    return json.dumps(text, ensure_ascii=False)


def percentage(token: inspection.ScoredToken) -> str:
    probability = exp(token.logprob)
    if probability >= 0.01:
        return f"{probability:.0%}"
    return "<1%"


print_repositories = partial(
    print_columns,
    {
        "repository": lambda row: f"{row['repo_id']} (gated)" if row["gated"] else row["repo_id"],
        "best fit": "recommended",
        "size": "size",
        "fit": "fit",
        "speed": speed_text,
        "license": "license",
        "updated": "updated",
        "downloads": lambda row: f"{row['downloads']:,}",
    },
    drop=("downloads", "updated", "license", "best fit", "size"),
)
