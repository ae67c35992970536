"""Decide from the files on disk whether a batch starts, resumes, is complete or must be refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cerebrum_cli.batch.files import OutputPaths
from cerebrum_cli.batch.meta import Identity, Record, describe_difference
from cerebrum_cli.core.errors import BatchError

Step = Literal["begin", "resume", "extend", "complete"]
_SMALLER = "use the same number or more, choose another -o, or use --restart to start over"
_REPLACE = "use --restart to replace it, or choose another -o"


@dataclass(frozen=True, slots=True)
class ResumeState:
    """The files on disk: whether the partial file has bytes, the record, and the identity of the output."""

    partial: bool
    record: Record | None
    output: Identity | None


def decide(state: ResumeState, new: Record, paths: OutputPaths) -> Step:
    """Decide the next step without --restart. Raises BatchError where it would lose or mix answers.

    `new` is the record of a result that would begin. With a larger extent, a complete result is extended.

    The files are written in this order, each synced before the next, so that they show how far a batch came: the
    record; rows in the partial file; the record with the hash of the result; the result. Then the partial file is
    deleted.
    """
    record = state.record
    if record is None:
        if state.partial:
            message = f"{paths.partial} exists, but its record {paths.meta.name} is missing"
            raise BatchError(message, "move it elsewhere, choose another -o, or use --restart to start over")
        if state.output:
            raise BatchError(f"{paths.output} already exists", _REPLACE)
        return "begin"
    if difference := describe_difference(record, new):
        return _decide_changed(state, record, difference, paths)
    if smaller := describe_smaller(record.extent, new.extent):
        raise BatchError(f"{paths.output} already has more {smaller}", _SMALLER)
    if record.result and record.result == state.output:
        return "complete" if record.extent == new.extent else "extend"
    if state.output is None:
        return "resume" if state.partial else "begin"
    if state.partial:
        if state.output == record.replaces:
            return "resume"
        message = f"{paths.output} was changed after {paths.partial} was started"
        raise BatchError(message, "move it elsewhere to resume, or use --restart to start over and replace it")
    if state.output == record.replaces and record.result is None:
        return "begin"  # --restart was interrupted before the first row
    raise BatchError(f"{paths.output} was changed after it was completed", _REPLACE)


def describe_smaller(before: Mapping[str, int], now: Mapping[str, int]) -> str | None:
    """Describe what an extent has less of, like "questions (40, now 20)"; None if it has not."""
    smaller = [f"{name} ({before[name]}, now {now[name]})" for name in now if now[name] < before.get(name, 0)]
    return " and ".join(smaller) or None


def _decide_changed(state: ResumeState, record: Record, difference: str, paths: OutputPaths) -> Step:
    if state.partial:
        message = f"{paths.partial} was started with {difference}"
        raise BatchError(message, "run the previous command to resume, or use --restart to start over")
    if state.output:
        is_unchanged = state.output == record.result
        problem = f"was made with {difference}" if is_unchanged else "already exists"
        raise BatchError(f"{paths.output} {problem}", _REPLACE)
    return "begin"
