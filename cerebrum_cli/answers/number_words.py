"""Write numbers in words as digits: of English any, of other languages small ones that stand alone."""

from __future__ import annotations

import re
from fractions import Fraction

from cerebrum_cli.core.text import Match

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
VALUES = {word: value for value, word in enumerate(_SMALL.split())}
VALUES |= {word: value * 10 for value, word in enumerate(_TENS.split(), 2)}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
_OTHERS = """null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf
zéro un deux trois quatre cinq six sept huit neuf dix onze douze
cero uno dos tres cuatro cinco seis siete ocho nueve diez _ doce
zero uno _ tre quattro cinque sei sette otto nove dieci undici dodici
zero um dois três quatro cinco seis sete oito nove dez onze doze
ноль один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать
零 一 二 三 四 五 六 七 八 九 十 十一 十二
영 하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열 열하나 열둘"""
# Without "once" and "due", which are English words.
_ALONE = {word: value for line in _OTHERS.split("\n") for value, word in enumerate(line.split())}
_LONGEST_FIRST = sorted([*VALUES, *SCALES], key=len, reverse=True)  # "sixty" before "six"
_NUMBER = rf"(?:(?:{_TENS.replace(' ', '|')})[\s-](?:{'|'.join(VALUES)})|{'|'.join(_LONGEST_FIRST)})"
_SCALE = "|".join(SCALES)
# "One" alone is mostly no number: "one of them".
_ONE = rf"""(?:(?<=\bonly\s)|(?<=exactly\s)|(?<=\bis\s)|(?<==\s)|(?<!.)(?=.{{0,8}}\Z)
    |(?!one\b(?!,|\s(?:{_SCALE})|[\s-](?:{"|".join(PARTS)})\b|\s(?:and|or)\s{_NUMBER})))"""
_NUMERAL = re.compile(
    rf"""(?ix) (?<!\d\s)\b(?P<sign>minus\s|negative\s)? (?P<half>half\s(?=a\s))? (?:an?\s(?={_SCALE}))?
    {_ONE} (?P<words>{_NUMBER} (?:(?:\s(?:{_SCALE}))++ (?:\s(?:and\s)?{_NUMBER})?+)*+)
    (?:(?P<and>\sand\san?)?[\s-](?P<part>{"|".join(PARTS)})s?)? \b(?![-'’]\w)""",
)


def with_digits(text: str) -> str:
    """A text with its numbers in digits, but for a "one" in a sentence."""
    alone = _ALONE.get(text.strip(" .!?。").casefold())
    return _NUMERAL.sub(_digits, text) if alone is None else str(alone)


def _digits(found: Match) -> str:
    total = current = 0
    for word in re.findall("[a-z]+", found["words"].lower()):
        if word in SCALES:
            current = max(current, 1) * SCALES[word]
        current += VALUES.get(word, 0)
        if current >= 1000:
            total, current = total + current, 0
    value = Fraction(total + current)
    if found["part"]:
        part = Fraction(1, PARTS[found["part"].lower()])
        value = value + part if found["and"] else value * part
    if found["half"]:
        value /= 2
    return f"{'-' if found['sign'] else ''}{value}"
