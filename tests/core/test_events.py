"""The order of events of one reply."""

from collections.abc import Iterator

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import Event, NoticeEvent, PromptEvent, SequenceId, TokenEvent, with_notices_behind

ONE = SequenceId(0)
EARLY, LATE = NoticeEvent("early"), NoticeEvent("late")
PROMPT, SOME, MORE = PromptEvent(ONE, 1, 1), TokenEvent(ONE, "Some"), TokenEvent(ONE, " more")


def test_notices_stand_behind_the_text_of_a_reply_even_if_it_fails() -> None:
    lost = EndpointError("connection lost", "ask again")

    def events() -> Iterator[Event]:
        yield from (PROMPT, EARLY, SOME, LATE, MORE)
        raise lost

    seen: list[object] = []
    try:
        seen.extend(with_notices_behind([PROMPT, EARLY, SOME, LATE, MORE]))
        seen.extend(with_notices_behind(events()))
    except EndpointError as error:
        seen.append(error)
    assert seen == [*(PROMPT, EARLY, SOME, MORE, LATE) * 2, lost]
