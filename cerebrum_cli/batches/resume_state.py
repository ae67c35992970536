"""What to do with what is found where a result is to go: begin, go on, leave it as it is done, or refuse; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cerebrum_cli.batches.files import Places
from cerebrum_cli.batches.meta import Identity, Record, difference
from cerebrum_cli.core.errors import BatchError

Step = Literal["begin", "resume", "complete"]
_REPLACE = "--restart replaces it; or choose another -o"


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What is on disk: whether anything stands in the partial file, the record, and what the result is."""

    partial: bool
    record: Record | None
    output: Identity | None


def decide(found: ResumeState, fingerprint: Mapping[str, Any], places: Places) -> Step:
    """Return what to do where nothing is to be restarted; BatchError where that would lose or mix anything.

    The files change in this order, each step on disk before the next, so that what is found tells how far it came:
    the record; rows in the partial file; the record with what the result will be; the result; no partial file.
    """
    record = found.record
    if record is None:
        if found.partial:
            what = f"{places.partial} is there, and nothing says what it was begun with"
            raise BatchError(what, "move it away, or choose another -o; --restart begins anew")
        if found.output:
            raise BatchError(f"{places.output} is there already", _REPLACE)
        return "begin"
    if other := difference(record.fingerprint, fingerprint):
        return _decide_otherwise(found, record, other, places)
    if record.result and record.result == found.output:
        return "complete"
    if found.output is None:
        return "resume" if found.partial else "begin"
    if found.partial:
        if found.output == record.replaces:
            return "resume"
        what = f"{places.output} has come or changed since {places.partial} was begun"
        raise BatchError(what, "move it away, and the same command goes on; --restart begins anew, and replaces it")
    if found.output == record.replaces and record.result is None:
        return "begin"  # its replacement was ordered, and ended before the first row
    raise BatchError(f"{places.output} is no longer what it was when it was done", _REPLACE)


def _decide_otherwise(found: ResumeState, record: Record, other: str, places: Places) -> Step:
    if found.partial:
        what = f"{places.partial} was begun with {other}"
        raise BatchError(what, "the same command as before goes on; --restart begins anew")
    if found.output:
        made = found.output == record.result
        what = f"{places.output} was made with {other}" if made else f"{places.output} is there already"
        raise BatchError(what, _REPLACE)
    return "begin"
