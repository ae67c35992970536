"""What a pool decides with, on a clock of the test: states of servers, losses of rows, deadlines, and notices."""

from __future__ import annotations

from typing import Any

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.engine.remote.client import LostServerError
from cerebrum_cli.engine.remote.server_health import ServerHealth, ServerNotices, ServerTimeouts

TIMEOUTS = ServerTimeouts()
STEPS: dict[str, Any] = {
    "reached": lambda health: health.reach(4),
    "failed": lambda health: health.fail(LostServerError("gone"), 0.0, TIMEOUTS),
    "answered": lambda health: health.answer(0.0),
    "refused": lambda health: health.answer(0.0, is_reply=False),
}


def health_after(steps: str) -> ServerHealth:
    health = ServerHealth()
    for step in steps.split():
        STEPS[step](health)
    return health


def test_server_is_tried_less_often_until_an_answer() -> None:
    health, now, delays = health_after("reached answered"), 0.0, []
    for _ in range(9):
        health.fail(LostServerError("gone"), now, TIMEOUTS)
        delays.append(health.retry_at - now)
        now = health.retry_at
        health.reach(4)
    assert delays == [1, 2, 4, 8, 15, 30, 60, 60, 60]
    health.answer(now)
    health.fail(LostServerError("gone"), now, TIMEOUTS)
    assert health.retry_at == now + 1


def test_timeouts_follow_slow_replies() -> None:
    assert [TIMEOUTS.row_limit(slow, 0) for slow in (0.0, 1.0, 90.0)] == [600, 600, 900]
    assert TIMEOUTS.row_limit(1.0, 2) == 2400
    assert ServerTimeouts(row_timeout=5.0).row_limit(90.0, 2) == 5
    impatient = ServerTimeouts(patience=0.0)
    assert (impatient.retry_delay(6), impatient.row_limit(0.0, 0)) == (1, 600)


def test_server_has_one_notice_in_five_minutes_besides_its_recovery() -> None:
    notices, lost, busy = ServerNotices(300.0), NoticeEvent("lost", ""), NoticeEvent("busy", "")
    notices.recover("a")  # nobody was told otherwise
    notices.add("a", lost)
    notices.add("b", lost)
    assert notices.take(0.0) == [lost, lost]
    notices.add("a", busy)
    notices.recover("a")
    notices.add("b", lost)
    assert notices.take(10.0) == [NoticeEvent("a is available again", "")]  # as soon as it is
    for _ in range(2):  # it comes and goes
        notices.add("a", lost)
        assert notices.take(20.0) == []
        notices.recover("a")
        assert notices.take(30.0) == []
    notices.add("a", busy)
    assert notices.take(309.0) == [] and notices.take(310.0) == [busy]
