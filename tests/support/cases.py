"""Cases of tests: tables in files, and how many a property test tries."""

import json
from pathlib import Path
from typing import Any

from hypothesis import settings


def rows(name: str) -> Any:
    """A table of `data`, which has one case a line."""
    return json.loads((Path(__file__).parents[1] / "data" / f"{name}.json").read_text(encoding="utf-8"))


def cases(count: int) -> settings:
    """Settings of a property test whose cases are slow, or cheap: this many; `make fuzz` tries 100 times as many."""
    return settings(max_examples=count * settings().max_examples // 30)
