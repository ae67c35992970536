"""How many cases a property test tries."""

from hypothesis import settings


def cases(count: int) -> settings:
    """Settings of a property test whose cases are slow, or cheap: this many; `make fuzz` tries 100 times as many."""
    return settings(max_examples=count * settings().max_examples // 30)
