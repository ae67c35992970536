"""A saved session as it is read on a terminal, in a pipe, or in a browser."""

from __future__ import annotations

from html import escape
from io import StringIO
from typing import TYPE_CHECKING

from cerebrum_cli.core.text import strip_controls
from cerebrum_cli.terminal.streams import Streams
from cerebrum_cli.terminal.tables import output_width

if TYPE_CHECKING:
    from cerebrum_cli.chat.archive import ArchivedSession

PAGE = """\
<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
body {{ max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }}
article :is(h1, h2, h3) {{ font-size: 1.1rem; }}
p {{ margin: 0; white-space: pre-wrap; }}
p:empty {{ height: 0.75rem; }}
blockquote {{ margin: 0; padding-left: 1rem; border-left: 3px solid; }}
.item {{ display: flex; }}
.item > * {{ white-space: pre-wrap; }}
.item > :first-child {{ flex: none; }}
pre, code {{ font-family: ui-monospace, monospace; background: rgb(127 127 127 / 0.15); }}
pre {{ padding: 0.75rem; overflow-x: auto; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; }}
th, td {{ padding: 0.25rem 0.5rem; border: 1px solid rgb(127 127 127 / 0.5); }}
</style>
</head>
<body>
{body}</body>
</html>
"""


def session_text(streams: Streams, archived: ArchivedSession, markdown: bool) -> str:
    """The Markdown of a session; for a terminal without control sequences, and rendered if it is to be `markdown`."""
    if not (markdown and streams.can_style):
        return strip_controls(archived.markdown) if streams.out_is_terminal else archived.markdown
    from cerebrum_cli.terminal.markdown.renderer import MarkdownStream
    from cerebrum_cli.terminal.styles import styled_console

    text = StringIO()
    console = styled_console(text, width=output_width(streams), force_terminal=False)
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


def session_page(archived: ArchivedSession) -> str:
    """A session as a page of HTML that needs no other file, in the colors of a light or a dark browser.

    Control characters are not valid in HTML, and programs that show the file as text would run them.
    """
    from cerebrum_cli.terminal.markdown.html import to_html

    parts = []
    for role, part in archived.markdown_parts:
        text = strip_controls(part)
        if role == "assistant":
            parts.append(f"<article>\n{to_html(text)}</article>\n")
        elif role:
            parts.append(f"<blockquote><p>{escape(text)}</p></blockquote>\n")
        else:
            parts.append(to_html(text))
    return PAGE.format(title=escape(archived.session.name), body="".join(parts))
