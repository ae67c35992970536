"""What a pool of servers decides: when it tries a lost server again, and when users are notified."""

from __future__ import annotations

from dataclasses import replace

from remote_engines import QUICK, connected, events_of, notices, request_of, serving
from scripted_backend import random_model

from cerebrum_cli.engine.remote.timeouts import ServerTimeouts


def test_server_is_tried_less_often() -> None:
    timeouts = ServerTimeouts()
    assert [timeouts.retry_delay(failures) for failures in range(9)] == [1, 2, 4, 8, 15, 30, 60, 60, 60]


def test_server_is_tried_within_a_short_patience() -> None:
    assert ServerTimeouts(patience=0.0).retry_delay(6) == 1


def test_server_that_is_lost_often_has_one_notice_besides_its_recovery() -> None:
    requests = [request_of(f"Q{at}") for at in range(40)]
    with serving(random_model) as [server], connected(server, timeouts=replace(QUICK, notices=300.0)) as engine:
        for count in (5, 20):
            server.arm(reset_after=0, times=8, let_through=count)
        events = events_of(engine, *requests)
    assert notices(events) == [f"{server.url} is unavailable: connection lost", f"{server.url} is available again"]
