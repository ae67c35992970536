"""The result of a check: its status, what was found, and how to fix it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. A warning means that something is slow, limited or not set up yet.

    `endpoint` names the server that was checked; it is empty for checks of this machine.
    """

    name: str
    status: Status
    detail: str
    hint: str = ""
    endpoint: str = ""

    @property
    def recorded(self) -> dict[str, str]:
        """The object that `--json` prints."""
        values = asdict(self)
        if not self.endpoint:
            del values["endpoint"]
        return values


def check_result(name: str, detail: str, *problems: tuple[str, str]) -> CheckResult:
    """Result of a check: ok, or a warning if there are problems, each with its hint."""
    if not problems:
        return CheckResult(name, "ok", detail)
    details = "; ".join(filter(None, [detail, *(problem for problem, _ in problems)]))
    return CheckResult(name, "warning", details, "; ".join(hint for _, hint in problems))
