"""How long servers are waited for, and when they are tried again."""

from __future__ import annotations

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.settings import PATIENCE_S


@frozen
class ServerTimeouts:
    """Times in seconds, and whether servers that do not answer at the start are waited for."""

    patience: float = PATIENCE_S
    row_timeout: float | None = None  # of one request
    retries: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)  # before a lost server is tried again
    hedge: float = 30.0  # of a row before other servers are asked, too
    silent_row: float = 2.0  # of a row on a server that sends nothing, before faster servers are asked, too
    silence: float = 30.0  # of a server with a reply that streams, before it is asked what it is
    health: float = 25.0  # for the answer to that question
    busy: float = 1.0  # before a busy server is, unless it states how long to wait
    busy_notice: float = 5.0  # of a busy server before users are notified
    notices: float = 300.0  # from one about a server to the next
    join: float = 1.0  # for the other servers at the start, once one is ready
    tick: float = 0.5  # after which servers and rows are looked at, if nothing happens
    waits_at_start: bool = False

    def retry_delay(self, failures: int) -> float:
        """Delay before a lost server is tried again; several are within the patience, unless that is short."""
        longest = max(self.patience / 10, 1.0)
        return min(self.retries[: failures + 1][-1], longest)
