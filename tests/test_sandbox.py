"""Templates are code from strangers: they find what they expect and no more, and a bad one is an error of one line."""

from __future__ import annotations

import pytest
from templates import BARE, ONE, embedded
from vocabularies import text_of

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import FormatError, Interrupted
from cerebrum_cli.engine.llama.backend import LlamaBackend
from cerebrum_cli.formats.sandbox import run_template


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
def test_templates_find_what_they_expect(source: str, expected: str, chatml: LlamaBackend) -> None:
    assert text_of(embedded(chatml, source).render(Conversation().user("hi"))) == expected


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ ''['__class__']['__mro__'] }}", "refuses"),
        ("{{ (''|attr('__class__')).__mro__ }}", "refuses"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "refuses"),
        ("{{ lipsum.__globals__['os'] }}", "refuses"),
        ("{{ raise_exception.__globals__.jinja2 }}", "refuses"),
        ("{{ strftime_now.__self__.year }}", "refuses"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ messages[0].update(role='system') }}", "refuses"),
        ("{{ self.__init__.__globals__ }}", "refuses"),
        ("{{ messages[9].content }}", "refuses"),
        ("{{ nowhere.content }}", "refuses"),
        ("{{ nowhere() }}", "refuses"),
        ("{{ raise_exception('two\nlines') }}", "refuses this conversation: two lines"),
        ("{{ raise_exception('') }}", "refuses this conversation: TemplateError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "fails: OverflowError"),
        ("{{ 'a' * 10 ** 16 }}", "fails: MemoryError"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError: division by zero"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "fails: RecursionError"),
        ("{{ strftime_now(1) }}", "fails: TypeError"),
        ("{{ messages | tojson(indent=[]) }}", "fails: TypeError"),
        ("{% include 'other' %}", "fails: TypeError"),
        ("{% import '/etc/passwd' as x %}", "fails: TypeError"),
        ("{% for %}", "cannot be read"),
        ("{{ ", "cannot be read"),
        ("{% nonsense %}", "cannot be read: Encountered unknown tag 'nonsense'."),
        ("{% generation %}", "cannot be read"),
        ("{{ a | nofilter }}", "cannot be read"),
        ("{{ " + "(" * 100_000 + ")" * 100_000 + " }}", "cannot be read"),
        ("{% if a %}" * 200 + "{% endif %}" * 200, "cannot be read"),
        ("{{ " + "9" * 5000 + " }}", "cannot be read"),
    ],
)
def test_a_bad_template_is_an_error_of_one_line(source: str, said: str, chatml: LlamaBackend) -> None:
    with pytest.raises(FormatError) as caught:
        embedded(chatml, source).render(ONE)
    assert caught.value.message.startswith(f"the model's template {said}")
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("source", ["{{ ''.__class__ }}", "{{ messages.__class__ }}", "{{ 'a'|attr('__class__') }}"])
def test_what_a_template_may_not_see_is_empty(source: str, chatml: LlamaBackend) -> None:
    assert text_of(embedded(chatml, source).render(ONE)) == ""


def test_a_template_that_writes_placeholders_itself_gains_nothing(chatml: LlamaBackend) -> None:
    for own in ("\ue0000\ue001", "\ue00099\ue001", "\ue000" + "9" * 5000 + "\ue001"):
        assert text_of(embedded(chatml, own + BARE).render(Conversation().user("hi"))) == own + "hi|"


def test_a_signal_in_the_middle_of_a_template_is_not_its_fault() -> None:
    class Late:
        def __str__(self) -> str:
            raise Interrupted(2)

    with pytest.raises(Interrupted):
        run_template("{{ value }}", {"value": Late()})
