"""The template sandbox: what templates may use, what they may not, and their errors."""

from __future__ import annotations

import pytest
from templates import BARE, ONE_TURN, embedded
from vocabularies import text_of

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import FormatError, Interrupted
from cerebrum_cli.engine.llama.backend import LlamaBackend
from cerebrum_cli.formats import bounds
from cerebrum_cli.formats.template_sandbox import run_template


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
        ("{{ 'a' * 10 ** 16 }}", "makes a value of more than 32 MB"),
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


DOUBLE = "{%% set ns = namespace(x='a') %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.x | string | length }}"
VALUE = "makes a value of more than 32 MB"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("{{ 'a' * 2000000000 }}", VALUE),
        ("{{ [1] * 200000000 }}", VALUE),
        (DOUBLE % "{% set ns.x = ns.x + ns.x %}", VALUE),
        (DOUBLE % "{% set ns.x = ns.x ~ ns.x %}", VALUE),
        (DOUBLE % "{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}", VALUE),
        (DOUBLE % "{% set ns.x = [ns.x, ns.x] %}", VALUE),
        (DOUBLE % "{% set ns.x = (ns.x, ns.x) %}", VALUE),
        (DOUBLE % "{% set ns.x = {1: ns.x, 2: ns.x} %}", VALUE),
        (DOUBLE % "{% set ns.x = dict(a=ns.x, b=ns.x) %}", VALUE),
        (DOUBLE % "{% set ns.x = cycler(ns.x, ns.x).items %}", VALUE),
        (DOUBLE % "{% set ns.x = '%s%s' % (ns.x, ns.x) %}", VALUE),
        (DOUBLE % "{% set ns.x = '{0}{0}'.format(ns.x) %}", VALUE),
        (DOUBLE % "{% set ns.x = ns.x | replace('a', 'aa') %}", VALUE),
        ("{% macro f(n) %}{{ f(n - 1, varargs, varargs) if n else varargs }}{% endmacro %}{{ f(60, 'a') }}", VALUE),
        ("{{ [{'a': 'x' * 1000000}.items()] * 100000 }}", VALUE),
        ("{{ 'a' | center(2000000000) }}{{ 'a'.ljust(2000000000) }}", VALUE),
        ("{% set center = 'a'.center %}{{ center(*[2000000000]) }}", VALUE),
        ("{{ ['a'] | map('center', 2000000000) | list }}", VALUE),
        ("{{ ('a\n' * 10000) | indent('x' * 1000000) }}", VALUE),
        ("{{ (['a'] * 100000) | join('x' * 1000000) }}", VALUE),
        ("{{ ('x' * 1000000).join(range(99999) | map('string')) }}", VALUE),
        ("{{ ('a' * 100000) | replace(new='x' * 100000, old='a') }}", VALUE),
        ("{{ ('a' * 1000000).translate({97: 'x' * 100000}) }}", VALUE),
        ("{{ ('\t' * 1000000).expandtabs(100000) }}", VALUE),
        ("{{ ([[1] * 10] * 1000) | tojson(indent=1000000) }}", VALUE),
        ("{{ [1] | batch(1000000000, 0) | list }}", VALUE),
        ("{{ (5).to_bytes(1000000000, 'big') }}", VALUE),
        ("{{ '%1000000000d' % 5 }}", "formats a value in an unsupported way"),
        ("{{ '%*d' | format(1000000000, 5) }}", "uses a variable width"),
        ("{{ '{:{}}'.format(5, 1000000000) }}", "uses a variable width"),
        ("{{ 10 ** (10 ** 10) }}", "makes an integer that is too large"),
        ("{% set x = ('f' * 1000000) | int(0, 16) %}", "makes an integer that is too large"),
        ("{{ 5 | round(-1000000000) }}", "calls round"),
        ("{{ {}.fromkeys(range(9), 'x') }}", "calls fromkeys"),
        ("{{ ('a' * 30000000).strip('b' * 30000000 ~ 'a') }}", "calls strip"),
        ("{% set ns = namespace(x=()) %}{% for i in range(999) %}{% set ns.x = (ns.x,) %}{% endfor %}", "nests values"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
            "writes more",
        ),
        ("{{ lipsum(100000) }}", "rejects this conversation: 'lipsum' is undefined"),
        ("a" * 300_000, "cannot be parsed: it has more than 250000 characters"),
    ],
)
def test_template_that_makes_large_values_is_an_error(source: str, error: str, chatml: LlamaBackend) -> None:
    with pytest.raises(FormatError) as caught:
        embedded(chatml, source).render(ONE_TURN)
    assert caught.value.message.startswith(f"the chat template {error}")
    assert caught.value.hint == "choose another --format" or "rejects" in error or "parsed" in error


@pytest.mark.parametrize("keeps", [True, False])
def test_template_may_make_many_values_if_it_keeps_few(
    keeps: bool, chatml: LlamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_TOTAL_BYTES", 100_000_000)
    monkeypatch.setattr(bounds, "MAX_BYTES", 10**9)
    value = "ns.all + [x[i:]]" if keeps else "x[i:]"
    loop = f"{{% for i in range(99) %}}{{% set ns.all = {value} %}}{{% endfor %}}"
    source = "{% set ns = namespace(all=[]) %}{% set x = 'a' * 3000000 %}" + loop
    if keeps:
        with pytest.raises(FormatError, match="uses too much memory"):
            embedded(chatml, source).render(ONE_TURN)
    else:
        embedded(chatml, source).render(ONE_TURN)


def test_template_may_mention_a_refused_filter_that_it_never_uses(chatml: LlamaBackend) -> None:
    embedded(chatml, "{% if false %}{{ messages | pprint }}{% endif %}ok").render(ONE_TURN)
    with pytest.raises(FormatError, match="uses the filter pprint"):
        embedded(chatml, "{{ messages | pprint }}").render(ONE_TURN)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if j > 99999 %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(9999) | map('string') | list %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set x %}{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}{% endset %}",
    ],
)
def test_template_that_takes_long_is_an_error(
    source: str, chatml: LlamaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.2)
    with pytest.raises(FormatError, match="the chat template takes longer"):
        embedded(chatml, source).render(ONE_TURN)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'a': 1, 'b': 2}.keys() | join(', ') }} {{ nothing | join }}{{ range(3) | join('-') }}", "a, b 0-1-2"),
        ("{{ ', '.join({'a': 1, 'b': 2}) }} {{ '-'.join('abc' | map('upper')) }}", "a, b A-B-C"),
        ("{{ [{'n': 1}, {'n': 2}] | sum(attribute='n') }} {{ [3, 1] | sort | first }} {{ (1, 2) | sum }}", "3 1 3"),
        ("{{ 'a-b' | replace('-', '+') }} {{ 'aXb' | replace(new='--', old='X') }}", "a+b a--b"),
        (
            "{{ '%s is %5.1f%%' % ('it', 2) }} {{ '%d' | format(5) }} {{ '{:>4} {x}'.format(1, x='y') }}",
            "it is   2.0% 5    1 y",
        ),
        (
            "{{ 'a\nb' | indent }} {{ 'a' | center(3) }} {{ '-' * 3 }} {{ 2 ** 10 }} {{ 7 % 4 }}",
            "a\n    b  a  --- 1024 3",
        ),
        (
            "{{ 'a b  c'.split() | length }} {{ 'a\nb'.splitlines()[-1] }} {{ ' x '.strip() }}{{ 'xax'.strip('x') }}",
            "3 b xa",
        ),
        ("{{ [1, 2, 3][1:] + [4] }} {{ (1,) + (2,) }} {{ [0] * 3 }}", "[2, 3, 4] (1, 2) [0, 0, 0]"),
        (
            "{{ [1, 2, 3] | batch(2, 0) | list }} {{ 2.567 | round(2) }} {{ '0x1f' | int(0, 16) }}",
            "[[1, 2], [3, 0]] 2.57 31",
        ),
        ("{{ [{'a': 1}] | tojson(indent=2) | length }} {{ namespace(a=1).a }} {{ 'a' ~ 1 ~ none }}", "22 1 a1None"),
        ("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}{% set a, b = 1, 2 %}{{ a + b }}", "x13"),
    ],
)
def test_sandbox_leaves_ordinary_values_alone(source: str, expected: str, chatml: LlamaBackend) -> None:
    assert text_of(embedded(chatml, source).render(ONE_TURN)) == expected


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
