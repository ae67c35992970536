"""A saved session as it is read on a terminal or in a pipe."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from cerebrum_cli.core.text import strip_controls
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import output_width

if TYPE_CHECKING:
    from cerebrum_cli.chat.archive import ArchivedSession


def session_text(streams: Streams, archived: ArchivedSession, markdown: bool) -> str:
    """The Markdown of a session; for a terminal without control sequences, and rendered if it is to be `markdown`."""
    if not (markdown and streams.can_style):
        return strip_controls(archived.markdown) if streams.out_is_terminal else archived.markdown
    from rich.console import Console

    from cerebrum_cli.terminal.markdown.renderer import STYLES, MarkdownStream

    text = StringIO()
    console = Console(
        file=text, theme=STYLES, width=output_width(streams), force_terminal=False, color_system="standard"
    )
    for role, part in archived.markdown_parts:
        if text.tell():
            text.write("\n")
        shown = strip_controls(f"{part}\n") if streams.out_is_terminal else f"{part}\n"
        if role in ("", "assistant"):
            stream = MarkdownStream(console)
            stream.feed(shown)
            stream.close()
        else:
            text.write(shown)
    return text.getvalue()
