"""Calibrations as files, each of which says what it was made with."""

from __future__ import annotations

from pathlib import Path

from cerebrum_cli.core.differences import describe_differences, differing_conditions
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import (
    atomic_write,
    decode_text,
    exists,
    read_small,
    readable,
    require_place,
    translate_os_errors,
)
from cerebrum_cli.core.json_types import JsonObject, to_json
from cerebrum_cli.core.text import enumeration
from cerebrum_cli.trust.calibration import HOW_TO_MAKE, Calibration, parse_calibration

MAX_BYTES = 100_000_000  # a labelled row takes 30


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Replace the file. Raises UsageError if it cannot be written, or has become something else."""
    require_replaceable(path)
    with translate_os_errors(UsageError, path, ", then run the same command again"):
        atomic_write(path, f"{to_json(calibration.object)}\n".encode(), mode=0o666)


def require_replaceable(path: Path) -> None:
    """Raise UsageError for a file that is not a calibration, and where none can be written."""
    require_place(path, "--calibrate")
    if exists(path):
        try:
            read_calibration(path)
        except UsageError as error:
            raise UsageError(f"{path} exists, and is not a calibration", "choose another --calibrate") from error


def load_calibration(path: Path, made_with: JsonObject) -> Calibration:
    """The calibration of a file. Raises UsageError without one, and for one that was made with something else."""
    if not exists(path):
        raise UsageError(f"{path} does not exist", HOW_TO_MAKE)
    calibration = read_calibration(path)
    if found := differing_conditions(calibration.made_with, made_with):
        difference = enumeration(describe_differences(found, ", now"))
        problem = f"{path} was made with something else: {difference}"
        raise UsageError(problem, "use what it was made with, or calibrate for this with --calibrate")
    return calibration


def read_calibration(path: Path) -> Calibration:
    """The calibration of a file. Raises UsageError for another one, and for what is no file."""
    with readable(path):
        data = read_small(path, MAX_BYTES)
    return parse_calibration(decode_text(data, str(path), MAX_BYTES, UsageError), str(path))
