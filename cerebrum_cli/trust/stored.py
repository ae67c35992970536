"""The stored calibrations of a user: under each name one for each model, question, choices and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import atomic_write, read_text
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import to_json
from cerebrum_cli.core.text import did_you_mean, format_names, text_digest
from cerebrum_cli.trust.calibration import Calibration, CalibrationKey, read_calibration

MAX_BYTES = 100_000_000  # of a file; a labelled row takes 30
DIGITS = 12  # of a digest
NAME = re.compile(r"[^\W_][\w.-]{0,99}")


@frozen
class StoredCalibrations:
    """A directory with a folder for each name, and a file for each calibration in it."""

    directory: Path

    @classmethod
    def of_user(cls, data_directory: Path) -> StoredCalibrations:
        return cls(data_directory / "calibrations")

    def folder(self, name: str) -> Path:
        """Where the calibrations of a name are. Raises UsageError for what cannot be a name."""
        if not NAME.fullmatch(name):
            raise UsageError.invalid("calibration", name, "a name of letters, digits, dots and hyphens")
        return self.directory / name

    def save(self, name: str, calibration: Calibration) -> None:
        """Save a calibration; it replaces the one with the same key. Raises OSError."""
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        digest = text_digest(to_json(calibration.object["key"]))[:DIGITS]
        atomic_write(folder / f"{digest}.json", to_json(calibration.object).encode())

    def find(self, name: str, key: CalibrationKey) -> Calibration | None:
        """The calibration of a name for a key; None if it has others only. Raises UsageError without any."""
        return next((found for found in self._all(name) if found.key == key), None)

    def nearest(self, name: str, key: CalibrationKey) -> Calibration:
        """The calibration of a name that differs least from a key, the latest of several. Raises UsageError."""
        return max(self._all(name), key=lambda found: (-len(key.differences(found.key)), found.date))

    def _all(self, name: str) -> Iterator[Calibration]:
        files = sorted(self.folder(name).glob("*.json"))
        if not files:
            names = sorted(folder.name for folder in self.directory.glob("*") if any(folder.glob("*.json")))
            hint = f"{did_you_mean(name, names)}the calibrations are: {format_names(names)}" if names else ""
            hint = hint or f"make it from labelled rows: --label COLUMN --calibrate {name}"
            raise UsageError(f"no calibration named {name!r}", hint)
        for file in files:
            yield read_calibration(read_text(file, MAX_BYTES), str(file))
