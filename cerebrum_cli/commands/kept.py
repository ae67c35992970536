"""The session an exchange of `ask` goes on from, and the one it is kept in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cerebrum_cli.ground.errors import SessionError
from cerebrum_cli.ground.events import NoticeEvent

if TYPE_CHECKING:
    from cerebrum_cli.application.model import Model
    from cerebrum_cli.application.opening import Opened
    from cerebrum_cli.application.reply import Reply
    from cerebrum_cli.application.vote import Poll
    from cerebrum_cli.ground.conversation import Conversation
    from cerebrum_cli.ground.settings import Settings
    from cerebrum_cli.runtime import Runtime


class Kept:
    """The session an exchange goes on from, if any, and the one it is kept in, unless it is not to be."""

    def __init__(self, runtime: Runtime, goes_on: bool, unkept: bool) -> None:
        self._runtime = runtime
        self._unkept = unkept
        self._history = runtime.history if goes_on or not unkept else None
        self.session = self._history.latest() if self._history and goes_on else None

    def led(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was given, with the session's own model and format."""
        if self.session is None:
            return dict(given)
        from cerebrum_cli.application.history import led

        return led(self.session, given)

    def before(self, conversation: Conversation, model: Model, given: Mapping[str, Any]) -> Conversation:
        """Return the conversation after what the session holds already."""
        if self.session is None or self._history is None:
            return conversation
        from cerebrum_cli.application.history import gone_on

        return gone_on(self._history.store, self.session, model.reference, conversation, given.get("system"))

    def keep(self, conversation: Conversation, opened: Opened, settings: Settings, reply: Reply) -> None:
        """Keep the exchange; where that cannot be done, say so: the answer stands."""
        if self._unkept or self._history is None:
            return
        from cerebrum_cli.application.history import Speaker

        speaker = Speaker(opened.model.reference, opened.format_name)
        try:
            self._history.keep(self.session, conversation, reply, speaker, settings)
        except SessionError as error:
            self._runtime.streams.notice(NoticeEvent(f"this exchange is not kept: {error.what}", error.do))

    def keep_read(self, opened: Opened, conversation: Conversation, reply: Reply | Poll) -> None:
        """Keep what the model has read, if that took long, so that it need not be read again."""
        from cerebrum_cli.application.reply import LONG_PROMPT

        if not self._unkept and reply.took_long_to_read and (notice := opened.keep(LONG_PROMPT, conversation)):
            self._runtime.streams.notice(notice)

    def close(self) -> None:
        """Let go of the session and of the database."""
        if self._history:
            self._history.close()
