"""What users read of servers: problems until they end, and what holds for a kind of server, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from time import monotonic

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import Emit, NoticeEvent
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.servers.description import NO_EXACT_PROMPTS
from cerebrum_cli.servers.kind import origin
from cerebrum_cli.servers.server import Server


class Notices:
    """Notices for the caller of the latest job; none is given while nobody reads them."""

    def __init__(self, emit: Emit, is_read: Callable[[], bool], interval_s: float) -> None:
        self.emit = emit
        self._is_read = is_read
        self._interval_s = interval_s  # from one about a server to the next
        self._given = set[NoticeEvent]()

    def note_problem(self, server: Server, hint: str) -> None:
        """Note that a server is unavailable, or that it does not fit: each once until it is usable, and an interval."""
        now = monotonic()
        problem = server.problem
        kind = "unfit" if isinstance(problem, EndpointError) else "unavailable"
        is_recent = now - server.noted_at.get(kind, -inf) < self._interval_s
        if kind in server.noted or is_recent or not self._is_read():
            return
        server.noted.add(kind)
        server.noted_at[kind] = now
        if isinstance(problem, EndpointError):
            self.emit(NoticeEvent(problem.message, problem.hint))
        else:
            self.emit(NoticeEvent(f"{server.name} is unavailable: {problem}", hint))

    def note_end(self, server: Server) -> None:
        """Note that a server has no problem, if users know of one."""
        if server.noted and server.problem is None and self._is_read():
            server.noted.clear()
            self.emit(NoticeEvent(f"{server.name} is available again"))

    def note_differences(self, servers: Sequence[Server]) -> None:
        """Note whether servers build prompts themselves, and differ from each other."""
        if any(server.info.takes_messages for server in servers):
            self._note_once(NO_EXACT_PROMPTS)
        variants = {f"{origin(server.info.recorded)} {server.info.build}" for server in servers}
        if len(variants) > 1:
            problem = f"the servers differ, so answers may depend on the server ({'; '.join(sorted(variants))})"
            self._note_once(NoticeEvent(problem, "for identical answers, use identical machines, builds and models"))

    def note_limits(self, server: Server, request: Request) -> None:
        """Note settings of a request that have no effect on a server, or another one."""
        kind = server.kind
        if ignored := kind.ignored(request, server.info):
            self._note_once(NoticeEvent(f"{kind.name} ignores {', '.join(ignored)}", "omit it, or use llama-server"))
        if request.params.has_penalties and not kind.counts_last_tokens:
            problem = f"{kind.name}'s penalties count the whole text or reply, not the last 64 tokens"
            self._note_once(NoticeEvent(problem, "replies differ from those of llama.cpp; use --set repeat_penalty=1"))

    def _note_once(self, notice: NoticeEvent) -> None:
        if notice not in self._given and self._is_read():
            self._given.add(notice)
            self.emit(notice)
