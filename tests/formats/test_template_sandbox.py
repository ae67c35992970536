"""The template sandbox: what templates may use, what they may not, and their errors."""

from __future__ import annotations

import pytest
from templates import BARE, ONE_TURN, embedded
from vocabularies import text_of

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import FormatError, Interrupted
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.formats.template import run_template


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if tools is not none %}tools{% endif %}{% if documents is none %}none{% endif %}", "none"),
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=True, sort_keys=true) }}", '{"a": 1, "b": "\\u00e9"}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}{{ [1] | tojson(indent=1) }}", "[1,2][\n 1\n]"),
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02345678"),
        ("{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "10"),
        ("a{% generation %}{% set b = 'b' %}{{ b }}{% endgeneration %}{{ b }}c", "abc"),
        ("{% for i in [1, 2] %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}", "12"),
        ("{{ nowhere }}{{ messages[0].nowhere }}{% if nowhere is defined %}x{% endif %}", ""),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("a\n\n", "a\n"),
        ("{{ messages[0].content | upper }}", "HI"),
    ],
)
def test_sandbox_has_what_templates_expect(source: str, expected: str, chatml: LlamaBackend) -> None:
    assert text_of(embedded(chatml, source).render(Conversation().user("hi"))) == expected


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("{{ ''.__class__.__mro__ }}", "rejects"),
        ("{{ ''['__class__']['__mro__'] }}", "rejects"),
        ("{{ (''|attr('__class__')).__mro__ }}", "rejects"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "rejects"),
        ("{{ lipsum.__globals__['os'] }}", "rejects"),
        ("{{ raise_exception.__globals__.jinja2 }}", "rejects"),
        ("{{ strftime_now.__self__.year }}", "rejects"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "rejects"),
        ("{{ messages.append(1) }}", "rejects"),
        ("{{ messages[0].update(role='system') }}", "rejects"),
        ("{{ self.__init__.__globals__ }}", "rejects"),
        ("{{ messages[9].content }}", "rejects"),
        ("{{ nowhere.content }}", "rejects"),
        ("{{ nowhere() }}", "rejects"),
        ("{{ raise_exception('two\nlines') }}", "rejects this conversation: two lines"),
        ("{{ raise_exception('') }}", "rejects this conversation: TemplateError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "fails: OverflowError"),
        ("{{ 'a' * 10 ** 16 }}", "fails: MemoryError"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError: division by zero"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "fails: RecursionError"),
        ("{{ strftime_now(1) }}", "fails: TypeError"),
        ("{{ messages | tojson(indent=[]) }}", "fails: TypeError"),
        ("{% include 'other' %}", "fails: TypeError"),
        ("{% import '/etc/passwd' as x %}", "fails: TypeError"),
        ("{% for %}", "cannot be parsed"),
        ("{{ ", "cannot be parsed"),
        ("{% nonsense %}", "cannot be parsed: Encountered unknown tag 'nonsense'."),
        ("{% generation %}", "cannot be parsed"),
        ("{{ a | nofilter }}", "cannot be parsed"),
        ("{{ " + "(" * 100_000 + ")" * 100_000 + " }}", "cannot be parsed"),
        ("{% if a %}" * 200 + "{% endif %}" * 200, "cannot be parsed"),
        ("{{ " + "9" * 5000 + " }}", "cannot be parsed"),
    ],
)
def test_invalid_template_is_a_one_line_error(source: str, error: str, chatml: LlamaBackend) -> None:
    with pytest.raises(FormatError) as caught:
        embedded(chatml, source).render(ONE_TURN)
    assert caught.value.message.startswith(f"the chat template {error}")
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("source", ["{{ ''.__class__ }}", "{{ messages.__class__ }}", "{{ 'a'|attr('__class__') }}"])
def test_sandbox_hides_internals(source: str, chatml: LlamaBackend) -> None:
    assert text_of(embedded(chatml, source).render(ONE_TURN)) == ""


def test_template_with_literal_placeholders_is_safe(chatml: LlamaBackend) -> None:
    for own in ("\ue0000\ue001", "\ue00099\ue001", "\ue000" + "9" * 5000 + "\ue001"):
        assert text_of(embedded(chatml, own + BARE).render(Conversation().user("hi"))) == own + "hi|"


def test_interrupt_while_rendering_is_not_a_format_error() -> None:
    class Late:
        def __str__(self) -> str:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        run_template("{{ value }}", {"value": Late()})
