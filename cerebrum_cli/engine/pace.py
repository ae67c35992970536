"""How many sequences talk at once: ever more, unless that says fewer tokens a second."""

from __future__ import annotations

FIRST = 32  # sequences; fewer are slower wherever it was measured
STEPS = 6  # that a number is tried for; the first of them is not counted, as llama.cpp plans anew in it
LOSS = 0.9  # of the tokens a second of fewer: a smaller loss may be another program's doing


class Pace:
    """The number of sequences that may run, up to `most`; measured by the steps they take anyway, or just `most`."""

    def __init__(self, most: int, measured: bool) -> None:
        self.limit = min(FIRST, most) if measured else most
        self._most = most
        self._seconds: list[float] = []
        self._before = (self.limit, 0.0)  # the number before this one, and its tokens a second
        self._settled = self.limit == most

    def record(self, rows: int, seconds: float) -> None:
        """Take in how long a step took in which each of `rows` sequences said a token."""
        if self._settled or rows != self.limit:
            return
        self._seconds.append(seconds)
        if len(self._seconds) < STEPS:
            return
        speed = rows / min(self._seconds[1:])
        self._seconds.clear()
        if speed < LOSS * self._before[1]:
            self.limit, self._settled = self._before[0], True
            return
        self._before = rows, speed
        self._settled = rows == self._most
        self.limit = min(2 * rows, self._most)
