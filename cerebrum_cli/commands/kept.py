"""The session an exchange of `ask` goes on from, and the one it is kept in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.events import NoticeEvent

if TYPE_CHECKING:
    from cerebrum_cli.application.chat.history import History
    from cerebrum_cli.application.inference.loading import LoadedModel
    from cerebrum_cli.application.inference.reply import Reply
    from cerebrum_cli.application.inference.voting import MajorityVote
    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.core.conversation import Conversation
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.runtime import Runtime


class Kept:
    """The session an exchange goes on from, if any, and the one it is kept in, unless it is not to be."""

    def __init__(self, runtime: Runtime, goes_on: bool, unkept: bool) -> None:
        self._runtime = runtime
        self._unkept = unkept
        self._opened: History | None = None
        self.session = self._history.acquire_latest() if goes_on else None

    def led(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was given, with the session's own model and format."""
        if self.session is None:
            return dict(given)
        from cerebrum_cli.application.chat.history import with_session_defaults

        return with_session_defaults(self.session, given)

    def before(self, conversation: Conversation, model: Model, given: Mapping[str, Any]) -> Conversation:
        """Return the conversation after what the session holds already."""
        if self.session is None:
            return conversation
        from cerebrum_cli.application.chat.history import continue_session

        return continue_session(self._history.store, self.session, model.reference, conversation, given.get("system"))

    def keep(self, conversation: Conversation, opened: LoadedModel, settings: Settings, reply: Reply) -> None:
        """Keep the exchange; where that cannot be done, say so: the answer stands."""
        if self._unkept:
            return
        from cerebrum_cli.application.chat.history import Author

        speaker = Author(opened.model.reference, opened.format_name)
        try:
            self._history.record(self.session, conversation, reply, speaker, settings)
        except SessionError as error:
            self._runtime.streams.notice(NoticeEvent(f"this exchange is not kept: {error.message}", error.hint))

    def keep_read(self, opened: LoadedModel, conversation: Conversation, reply: Reply | MajorityVote) -> None:
        """Keep what the model has read, and what every question begins with, where that took long to read."""
        from cerebrum_cli.application.inference.reply import LONG_PROMPT

        if self._unkept:
            return
        notice = opened.save_prompt_cache(LONG_PROMPT, conversation) if reply.has_long_prompt else None
        if notice := notice or opened.save_prefix(conversation, reply.has_slow_prefill):
            self._runtime.streams.notice(notice)

    def close(self) -> None:
        """Let go of the session and of the database."""
        if self._opened:
            self._opened.close()

    @property
    def _history(self) -> History:
        """The sessions, opened when they are needed: mostly after the answer."""
        if self._opened is None:
            self._opened = self._runtime.history
        return self._opened
