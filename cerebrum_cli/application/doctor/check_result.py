"""What `doctor` tells of one thing: that it is well, or what is not and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One thing that was looked at. A warning is what works less well than it could, or is not there yet."""

    name: str
    status: Status
    detail: str
    hint: str = ""


def check_result(name: str, detail: str, *problems: tuple[str, str]) -> CheckResult:
    """Return what is, as a warning where there are problems: of each what it is, and what to do."""
    if not problems:
        return CheckResult(name, "ok", detail)
    told = "; ".join(filter(None, [detail, *(problem for problem, _ in problems)]))
    return CheckResult(name, "warning", told, "; ".join(do for _, do in problems))
