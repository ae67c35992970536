"""A session as a page of HTML: every text of a model is escaped, and nothing is loaded."""

from html.parser import HTMLParser

import pytest
from cases import rows

from cerebrum_cli.chat.history import History
from cerebrum_cli.chat.session import ReplyMetadata
from cerebrum_cli.chat.store import Store
from cerebrum_cli.core.conversation import Message
from cerebrum_cli.terminal.session_text import session_page

QUESTION = "<b>Why</b> *now*?\n  & how"


def page(store: Store, reply: str) -> str:
    session = store.create("a <i>talk</i>", "chat", system_prompt="Be </p> brief.")
    session = store.add_message(session, Message("user", QUESTION))
    session = store.add_message(session, Message("assistant", reply), ReplyMetadata(finish_reason="stop"))
    return session_page(History(store, None).archived(session))


@pytest.mark.parametrize(("what", "reply", "html"), rows("session_pages"))
def test_page_shows_markdown_and_escapes_everything_else(store: Store, what: str, reply: str, html: str) -> None:
    assert html in page(store, reply).partition("<article>")[2]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "img", "link", "b", "i")
        assert not [name for name, _ in attrs if name in ("href", "src")]


def test_page_has_the_name_the_system_prompt_and_the_question_and_loads_nothing(store: Store) -> None:
    html = page(store, "Now.")
    assert "color-scheme: light dark" in html and "default-src 'none'" in html
    parsed = Page()
    parsed.feed(html)
    assert [text for text in parsed.texts if text.strip()][2:] == [
        *("a <i>talk</i>", "System", "Be </p> brief.", "User", QUESTION, "Assistant", "Now.")
    ]
