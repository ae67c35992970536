"""What a pool decides with, on a clock of the test: circuit breakers, deadlines, and what users are told."""

from __future__ import annotations

from math import inf

from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.engine.remote.client import LostServerError
from cerebrum_cli.engine.remote.server_health import ServerHealth, ServerNotices, ServerTimeouts

TIMEOUTS = ServerTimeouts()
LOST = LostServerError("gone")


def reached(health: ServerHealth) -> ServerHealth:
    health.reach(4)
    return health


def failed(health: ServerHealth, now: float = 0.0) -> ServerHealth:
    health.fail(LOST, now, TIMEOUTS)
    return health


def finished(health: ServerHealth) -> ServerHealth:
    health.finish(0.0)
    return health


def test_breaker_takes_all_requests_when_first_reached_and_one_after_a_failure() -> None:
    health = ServerHealth()
    steps = (reached, failed, reached, finished)
    assert [step(health).state for step in steps] == ["closed", "open", "half-open", "closed"]


def test_breaker_backs_off_until_a_reply() -> None:
    health, now, delays = finished(reached(ServerHealth())), 0.0, []
    for _ in range(9):
        delays.append(failed(health, now).retry_at - now)
        now = health.retry_at
        reached(health)
    assert delays == [1, 2, 4, 8, 15, 30, 60, 60, 60]
    assert failed(finished(health), now).retry_at == now + 1


def test_breaker_stays_open_at_a_reply_to_an_older_request() -> None:
    health = finished(failed(reached(ServerHealth())))
    assert health.state == "open" and reached(health).state == "half-open"


def test_breaker_knows_whether_it_has_answered_since_it_was_reached() -> None:
    health = failed(finished(reached(ServerHealth())))
    assert health.has_answered and not reached(health).has_answered


def test_timeouts_follow_the_slowest_reply() -> None:
    timeouts = ServerTimeouts()
    assert [timeouts.silence_limit(slowest, 0, False) for slowest in (0.0, 1.0, 60.0)] == [600, 30, 600]
    assert [timeouts.silence_limit(slowest, 0, True) for slowest in (0.0, 60.0)] == [45, 45]
    assert [timeouts.recall_limit(slowest, 0) for slowest in (0.0, 60.0)] == [10, 180]
    assert timeouts.recall_limit(60.0, 2) == 720
    assert [timeouts.row_limit(slowest, 0) for slowest in (0.0, 1.0, 90.0)] == [inf, 600, 900]
    assert (timeouts.silence_limit(1.0, 2, False), timeouts.row_limit(1.0, 2)) == (120, 2400)
    assert ServerTimeouts(row_timeout=5.0).row_limit(90.0, 2) == 5


def test_server_is_given_time_without_patience() -> None:
    timeouts = ServerTimeouts(patience=0.0)
    assert timeouts.silence_limit(0.0, 0, False) == 30 and timeouts.retry_delay(6) == 1


def test_server_has_one_notice_in_five_minutes_besides_its_recovery() -> None:
    notices, (lost, busy) = ServerNotices(300.0), (NoticeEvent(each, "") for each in ("lost", "busy"))
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
