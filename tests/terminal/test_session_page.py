"""A session as a page of HTML: every text of a model is escaped, and nothing is loaded."""

from html.parser import HTMLParser

import pytest

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


@pytest.mark.parametrize(
    ("reply", "html"),
    [
        (
            "**Yes**, `a < b`.\n__init__ &lt;",
            "<p><strong>Yes</strong>, <code>a &lt; b</code>.</p>\n<p>__init__ &amp;lt;</p>",
        ),
        ("<script>x</script>\n\n2", "<p>&lt;script&gt;x&lt;/script&gt;</p>\n<p></p>\n<p>2</p>"),
        ("[**a**](https://b.c/?d&e)", '<p><a href="https://b.c/?d&amp;e"><strong>a</strong></a></p>'),
        ("[javascript:b](javascript:b)", "<p>[javascript:b](javascript:b)</p>"),
        ("[a](javascript:b)", "<p>[a](javascript:b)</p>"),
        ("![a](http://b.c/d.png)", '<p><a href="http://b.c/d.png">a</a></p>'),
        ("```py\n</pre>\n  $x^2$\n```", '<pre title="py">\n&lt;/pre&gt;\n  $x^2$\n</pre>'),
        ("- ```\n  a", '<div class="item"><div>- </div><div></div></div>\n<pre title="">\na\n</pre>'),
        ("a = 1\n# *a*\n    b = 1", '<p># *a*</p>\n<div class="item"><div>    </div><div>b = 1</div></div>'),
        ('$x^2 + "$, $y^2 > 0$.', '<p>$x^2 + &quot;$, <span title="$y^2 &gt; 0$">y² &gt; 0</span>.</p>'),
        ("$$\nx_1\n+ 1\n$$.", '<p><span title="$$\nx_1\n+ 1\n$$">x₁ + 1</span>.</p>'),
        ("H<sub>2</sub>O <b>x</b>", "<p>H<sub>2</sub>O &lt;b&gt;x&lt;/b&gt;</p>"),
        ("| a |\n|--:|\n| `b` | <br>c |", '<td style="text-align: right"><code>b</code> | <br>c</td>'),
        ("a\x1b[2J\0b\x9bmc", "<p>abc</p>"),
        ("## One\n> two", '<h2>One</h2>\n<div class="item"><div>&gt; </div><div>two</div></div>'),
    ],
)
def test_page_shows_markdown_and_escapes_everything_else(store: Store, reply: str, html: str) -> None:
    assert html in page(store, reply).partition("<article>")[2]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addresses: list[str | None] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "img", "link", "b", "i")
        self.addresses += [value for name, value in attrs if name in ("href", "src")]


def test_page_has_the_name_the_system_prompt_and_the_question_and_loads_nothing(store: Store) -> None:
    html = page(store, "Now.")
    assert "color-scheme: light dark" in html and "default-src 'none'" in html
    tags = Tags()
    tags.feed(html)
    assert tags.addresses == []
    assert [text for text in tags.texts if text.strip()][2:] == [
        *("a <i>talk</i>", "System", "Be </p> brief.", "User", QUESTION, "Assistant", "Now.")
    ]
