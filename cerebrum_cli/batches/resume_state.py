"""What to do with what is found where a result is to go: begin, go on, leave it as it is done, or refuse; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cerebrum_cli.batches.files import OutputPaths
from cerebrum_cli.batches.meta import Identity, Record, describe_difference
from cerebrum_cli.core.errors import BatchError

Step = Literal["begin", "resume", "complete"]
_REPLACE = "--restart replaces it; or choose another -o"


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What is on disk: whether anything stands in the partial file, the record, and what the result is."""

    partial: bool
    record: Record | None
    output: Identity | None


def decide(found: ResumeState, fingerprint: Mapping[str, Any], paths: OutputPaths) -> Step:
    """Return what to do where nothing is to be restarted; BatchError where that would lose or mix anything.

    The files change in this order, each step on disk before the next, so that what is found tells how far it came:
    the record; rows in the partial file; the record with what the result will be; the result; no partial file.
    """
    record = found.record
    if record is None:
        if found.partial:
            what = f"{paths.partial} is there, and nothing says what it was begun with"
            raise BatchError(what, "move it away, or choose another -o; --restart begins anew")
        if found.output:
            raise BatchError(f"{paths.output} is there already", _REPLACE)
        return "begin"
    if other := describe_difference(record.fingerprint, fingerprint):
        return _decide_changed(found, record, other, paths)
    if record.result and record.result == found.output:
        return "complete"
    if found.output is None:
        return "resume" if found.partial else "begin"
    if found.partial:
        if found.output == record.replaces:
            return "resume"
        what = f"{paths.output} has come or changed since {paths.partial} was begun"
        raise BatchError(what, "move it away, and the same command goes on; --restart begins anew, and replaces it")
    if found.output == record.replaces and record.result is None:
        return "begin"  # its replacement was ordered, and ended before the first row
    raise BatchError(f"{paths.output} is no longer what it was when it was done", _REPLACE)


def _decide_changed(found: ResumeState, record: Record, difference: str, paths: OutputPaths) -> Step:
    if found.partial:
        what = f"{paths.partial} was begun with {difference}"
        raise BatchError(what, "the same command as before goes on; --restart begins anew")
    if found.output:
        is_unchanged = found.output == record.result
        what = f"{paths.output} was made with {difference}" if is_unchanged else f"{paths.output} is there already"
        raise BatchError(what, _REPLACE)
    return "begin"
