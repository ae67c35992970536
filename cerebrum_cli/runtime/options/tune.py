"""Options of `cerebrum tune`."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.options import option
from cerebrum_cli.runtime.options.shared import PullOptions


@dataclass(frozen=True)
class TuneOptions(PullOptions):
    """Options of `cerebrum tune`."""

    quick: bool = option(False, "Measure only what matters most; 30 s on a 7B", "Speed")
    thorough: bool = option(False, "Try more values, and measure longer", "Speed")
    reencode: bool = option(False, "Compare other encodings of the weights; save none", "Speed")
    apply: str | None = option(None, "With --reencode: save and use this encoding", "Speed", metavar="TYPE")
    force: bool = option(False, "With --apply: accept an encoding whose output differs", "Speed")
    json: bool = option(False, "Print JSON", "Output")

    def validate(self) -> None:
        """Raise UsageError for options that exclude or require each other."""
        if self.quick and self.thorough:
            raise UsageError("--quick and --thorough exclude each other", "give one of them")
        if self.reencode and (self.quick or self.thorough):
            other = "quick" if self.quick else "thorough"
            raise UsageError(f"--reencode and --{other} exclude each other", "give one of them")
        if self.apply and not self.reencode:
            raise UsageError("--apply without --reencode", "add --reencode")
        if self.force and not self.apply:
            raise UsageError("--force without --apply", "add --reencode --apply TYPE")
