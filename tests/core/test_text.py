"""Formatting sizes."""

from __future__ import annotations

import pytest

from cerebrum_cli.core.text import format_size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 kB"),
        (1_499, "1 kB"),
        (999_499, "999 kB"),
        (1_000_000, "1 MB"),
        (98_362_432, "98 MB"),
        (1_000_000_000, "1.00 GB"),
        (4_368_438_944, "4.37 GB"),
        (1_234_500_000_000, "1,234.50 GB"),
    ],
)
def test_format_size_uses_units_of_1000(size: int, text: str) -> None:
    assert format_size(size) == text
