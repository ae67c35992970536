"""Find the choice that a reply means: a letter, or the text of a choice; none if it means several or refuses to choose.

What counts, first of all:

1. The letter that the reply states last: "the answer is B", "Answer: (B)", "B is correct", "I choose B", `\\boxed{B}`,
   and "...:" before a line such as "B. carbon dioxide"; else the only one with a tick. "None of the above" states that
   there is none.
2. The letter that opens the reply: "B) carbon dioxide".
3. The choice whose text is the first or the last line of the reply, or its final answer.
4. The only choice named, by letter or by text, in its last sentence about the answer; otherwise in its last sentence
   that names any, if that is in one of the last two paragraphs.

What is negated or ruled out ("not A", "B is wrong", "unlike (C)"), and what only lists the choices, never counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from cerebrum_cli.answers.canonical import canonical
from cerebrum_cli.answers.extract import extract_answers
from cerebrum_cli.answers.plain_text import plain, sentences, trimmed
from cerebrum_cli.answers.sentence import is_in_doubt
from cerebrum_cli.answers.subject import asked_in
from cerebrum_cli.answers.words import stems
from cerebrum_cli.core.text import Match, Pattern, Texts

# In patterns, <upper> is a letter, and <letter> also one in lower case where it cannot be a word. <label> announces a
# letter, <copula> and <filler> may stand between both, and <right> is what a letter is said to be.
_LABELS = "|".join(  # in English, German, French, Spanish, Italian, Portuguese, Russian
    ("answer|option|choice|response|statement", "antwort", "réponse", "respuesta", "risposta", "resposta", "ответ")
)
_UNSPACED_LABELS = "答案|答え|正解|정답"  # in Chinese, Japanese, Korean
_NOUN = "(?:answer|choice|completion|description|explanation|fit|match|option|statement)"
_PARTS = {  # those that have others first
    "label": rf"(?:\b(?i:{_LABELS})s?\b|{_UNSPACED_LABELS})",
    "copula": r"(?:\b(?i:is|are|be|ist|lautet|est|es|è|é)\b|[:=(>是为は은는]|\n)",
    "filler": (
        r"(?i:(?:[\s*_`\"'“‘(\[{$\\<>:=#-]++|\b(?:text(?:bf)?|mathrm|mathbf|boxed|the|la|le|el|il|die|der|das|most|closest|to|therefore|thus"
        r"|best|correct|final|option|choice|letter|answer|number|indeed|still|\w{3,}ly)\b){0,12}+)"
    ),
    "right": (
        rf"(?i:answer|correct|right(?!\s\w)|right\s{_NOUN}|(?:best|closest)(?:\W*(?=\Z|[.,\n])|\s(?:to|{_NOUN}))"
        rf"|most\s(?:likely|\w+ly|\w+\s{_NOUN}|accurate|appropriate|fitting|logical|plausible|probable|reasonable"
        r"|suitable))"
    ),
    "other": r"\W{0,3}(?:(?:option|choice)\s)?<upper>",
    "joint": r"\W{0,2},?\s?(?:\band\b|\bn?or\b|&|/)",
    "letter": r"(?:<upper>|(?<![A-Za-z0-9_'])[a-<last>](?=\)|[ .*\"'$]*+$))",
    "upper": (
        r"(?<![A-Za-z0-9_'])[A-<LAST>](?![A-Za-z0-9_'’]|-\w| ?(?:[=+/^≈_]|<(?![/|]))| [*-]\s(?:\d|\w\b))"
        r"(?!(?<=[AI])\s+(?!is\b|because\b|since\b|as\b|and\b|or\b|would\b|was\b)[a-z])"
    ),
}
# How a letter is stated. Several joined letters may be `said` or `chosen`.
_STATEMENTS = (
    r"<label>[^.:\n]{0,80}?<copula><filler>(?P<said><letter>)",
    (
        r"(?:\b(?i:if|whether)\s(?i:option\s)?)?(?P<found><upper>)(?:(?!<upper>)[^.\n]){0,120}?"
        r"\b(?i:is|are|be|seems|appears|as)\b(?:[\s*_]++\w++){0,3}?[\s*_]++<right>\b"
    ),
    (
        r"(?:\b\w++\W++){0,2}\b(?i:choose|chose|select|selected|pick|give|(?<=d\s)say|go\swith|opt\sfor)\s"
        r"<filler>(?P<chosen><upper>)"
    ),
    r"\b(?i:hence|leav(?:es|ing)(?:\sus)?|(?:has\sto|must|should)\sbe|so|therefore|thus)\s<filler>(?P<left><upper>)(?=\W*+$)",
    r"\b(?i:but)\s<filler>(?P<instead><upper>)(?=\W*+$)",
    (
        r"\b(?i:only)\s<filler>(?P<only><upper>)"
        r"\s(?i:remains|fits|works|(?:can|could|may|must)\sbe|is\s(?:left|possible))\b"
    ),
    r"\\boxed\s*+\{<filler>(?P<boxed><letter>)",
    r"\b(?i:is|are|be)\s[*(\"\[]*+(?P<marked><upper>)[*\"]*+[.):\]]",
    r"(?:\b\w++\**+|(?<![\w*])):\s++[*(\"\[]*+(?P<listed><letter>)[*\"]*+(?:[.):\]]|$)",
)
_LINE = (
    r"(?m)^[^\w\n]*+(?:(?i:option|choice|answer)\s[(\"*]*+)?(<letter>)(?:[*\"'_]*+[.):\]]|\*\*|_|'|\s[-–—]\s|\s\(not\b"
    r"|,?\s(?:because|since|not|rather|instead|of\scourse|it\sis)\b|[ *\"'`]*+$)"
)
_NAMED = (
    r"(?:\b(?i:option|choice|letter|answer)\s[*(\"']*+|\()(<letter>)"
    r"|(?:\A|\b(?i:is|be|but|so|thus|hence|therefore|leaves|with|only|just|it's|es|est|ist)\b|[:,是为])\W{0,4}(<upper>)(?=\W*\Z)"
)
_SEVERAL = r"<upper>(?:(?:\W{0,2},<other>)*+(?:<joint><other>)+|(?:\W{0,2},<other>){2,}|<joint>\W*+\Z)"
_TICK = r"(?m)^[^\w\n]*+(<letter>)[.):]?\s[^\n✓✔✅✗✘❌]*+[✓✔✅]"
_NEGATED = re.compile(
    r"(?i)\b(?:not|cannot|\w+n['’]t|never|neither|nor|no|if|whether|incorrect|wrong|false|less|unlikely|also|could|may)\b"
    r"|\b(?:explanation|reasoning|note|options|choices)\W*:",
)
_BEFORE = re.compile(
    r"(?i)(?:\b(?:cannot|not|than|unlike|instead\sof|neither|nor|except|rul\w+\sout|eliminat\w+|exclud\w+|reject\w*"
    r"|nicht|kein\w*|pas|non|no(?=\s\w))|n['’]t)(?:\W+(?!(?:but|it|so|sondern|mais|sino|ma)\b)\w+){0,3}?\W*\Z",
)
_DENIED = re.compile(
    r"(?i)(?:\b(?:cannot|never|not)|n['’]t)\W+(?:(?:believe|say|think)\s(?:that\s)?(?:(?:an?|my|the)\s)?(?:\w+\s)?)?\Z"
)
_BEHIND = re.compile(
    r"(?:(?!\b[A-Z]\b)[^,.;]){0,80}?\b(?:is|are|was|were|can|could|does|do|did|would|will|has)(?:n['’]t\b|\W++(?:\w++\W++){0,2}?"
    r"(?:not|incorrect|wrong|false|eliminated|ruled|excluded|unlikely|irrelevant|impossible)\b)|\W+cannot\b"
)
_NONE = re.compile(
    r"(?i)\b(?:none\sof\s(?:the|these)(?:\s(?:given|provided|listed|available))*+\s(?:above|options|choices|answers)"
    r"|no\s(?:correct|right)\s(?:answer|choice|option)"
    r"|(?:answer|option)[^.\n]{0,40}\bnot\s(?:among|given|included|listed|present|provided))\b",
)
_REFUSAL = re.compile(
    r"(?i)\b(?:cannot|can['’]t|unable\sto|impossible\sto)\s(?:be\s)?(?:answer|cho|conclu|decid|determin|provid|select)",
)
_ABOUT_ANSWER = re.compile(r"(?i)\b(?:answer|correct|best|right\s(?:answer|choice|option)|choose|option|choice)\b")
_SUPPOSED = re.compile(
    r"(?i)\b(?:if|were|had)\b[^.!?\n]*\b(?:would|could|might)\b[^.!?\n]*\Z"
)  # "if it were halved, ..."
_ORDINAL = re.compile(r"(?i)\bthe\s(first|second|third|fourth|fifth|last)\s(?:answer|choice|option|statement)\b")
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_CLAUSE_END = re.compile(r"[,;:.!?\n—–]|\b(?:but|so)\b")
_DECIDES = re.compile(
    r"(?i)\bbut\s(?=[^,;]*\b(?:is|was)\s(?:\w+\s){0,2}(?:best|better|correct|it|overall|right|the\sone)\W*\Z)"
)
_CLAUSE = 120  # characters before a statement that may suppose something else
_ARTICLE = re.compile(r"\A(?:an?|the)\s")
_LONGEST_SENTENCE = 2000

Mention = tuple[int, int, str]  # start and end of what names choices, and their letters


class Patterns(NamedTuple):
    """Patterns of letters: one that is stated, opens a line, or is named; several letters, and one with a tick."""

    statement: Pattern
    line: Pattern
    named: Pattern
    several: Pattern
    tick: Pattern


@lru_cache
def _patterns(count: int) -> Patterns:
    """The patterns of a question with this many choices."""
    last = LETTERS[count - 1]
    statement = "(?m)" + "|".join(_STATEMENTS)
    compiled = []
    for pattern in (statement, _LINE, _NAMED, _SEVERAL, _TICK):
        for name, part in (*_PARTS.items(), ("LAST", last), ("last", last.lower())):
            pattern = pattern.replace(f"<{name}>", part)
        compiled.append(re.compile(pattern))
    return Patterns(*compiled)


def chosen_letter(question: str, text: str, choices: Texts, is_complete: bool) -> tuple[str | None, bool]:
    """The letter of the choice that a reply's own text means, and whether rules 1 to 3 find it, as a statement.

    Of a truncated reply, only what it states or begins with counts.
    """
    patterns = _patterns(len(choices))
    text = _with_letters(text, len(choices))
    lines = list(patterns.line.finditer(text))
    items = _items(lines)
    if stated := _stated(text, patterns, items, choices):
        return max(stated)[1] or None, True
    ticked = patterns.tick.findall(text)
    if len(ticked) == 1:
        return ticked[0].upper(), True
    if lines and lines[0].start() == 0 and lines[0] not in items:
        return _opening(text, lines[0][1].upper(), patterns), True
    choice, is_stated = _equal(text, choices, is_complete)
    if choice or not is_complete:
        return choice, is_stated
    for item in reversed(items):
        text = text[: item.start()] + text[item.end() :].partition("\n")[2]
    return _named(question, text, choices, patterns), False


def _with_letters(text: str, count: int) -> str:
    """A text in which "the second option" is "option B"."""

    def lettered(found: Match) -> str:
        name = found[1].casefold()
        place = count - 1 if name == "last" else _ORDINALS.index(name)
        return f"option {LETTERS[place]}" if place < count else found[0]

    return _ORDINAL.sub(lettered, text)


def _items(lines: list[Match]) -> list[Match]:
    """The lines that list choices: their letters follow that of the previous line, or precede that of the next."""
    items = []
    for before, after in pairwise(lines):
        if ord(after[1].upper()) - ord(before[1].upper()) == 1:
            items += [before, after]
    return list(dict.fromkeys(items))


def _stated(text: str, patterns: Patterns, items: list[Match], choices: Texts) -> list[tuple[int, str]]:
    """Places of statements, and their letters; none in a statement that several letters, or no choice, are right."""
    none = next((letter for letter, choice in zip(LETTERS, choices, strict=False) if _NONE.search(choice)), "")
    stated = [(match.start(), none) for match in _NONE.finditer(text)]
    listed = {item.start(1) for item in items}
    joined = set[int]()
    for letters in patterns.several.finditer(text):
        joined.update(range(*letters.span()))
    place = 0
    while match := patterns.statement.search(text, place):
        group = match.lastgroup or ""
        at = match.start(group)
        is_joined = at in joined
        is_refused = is_joined and group not in ("said", "chosen")
        is_supposed = _SUPPOSED.search(text[max(0, match.start() - _CLAUSE) : at])
        is_denied = _NEGATED.search(match[0]) or _is_denied(text, match.start())
        if is_refused or is_supposed or at in listed or is_denied:
            place = match.start() + 1
            continue
        stated.append((match.start(), "" if is_joined else match[group].upper()))
        place = match.end()
    return stated


def _is_denied(text: str, start: int) -> bool:
    """Whether the words before a statement deny or doubt it: "It can't", "I can't tell whether it"."""
    before = text[max(0, start - _CLAUSE) : start]
    clause = _CLAUSE_END.split(before)[-1]
    return _DENIED.search(clause) is not None or is_in_doubt(text, start, start)


def _opening(text: str, letter: str, patterns: Patterns) -> str | None:
    """The letter that opens a reply, unless its first sentence names another."""
    sentence = sentences(text.partition("\n")[0])[0]
    return letter if _letters(sentence, (), patterns) <= {letter} else None


def _equal(text: str, choices: Texts, is_complete: bool) -> tuple[str | None, bool]:
    """The letter of the choice whose text is a line or the final answer, and whether that is stated, not guessed."""
    final, stated = extract_answers(text, is_complete)
    first_line, last_line = text.partition("\n")[0], text.rpartition("\n")[2]
    first_sentence = sentences(first_line)[0]
    as_stated = [
        stated,
        *(trimmed(plain(line).strip()) for line in (first_line, first_sentence, last_line)),
    ]
    values = [*as_stated, final] if is_complete else [stated or final]
    forms = [canonical(choice) for choice in choices]
    for value in filter(None, values):
        form = canonical(value)
        if forms.count(form) == 1:
            return LETTERS[forms.index(form)], value in as_stated
    return None, False


def _named(question: str, text: str, choices: Texts, patterns: Patterns) -> str | None:
    asked = stems(asked_in(question)) if question else set[str]()
    for sentence in sorted(_last_sentences(text), key=lambda sentence: asked.isdisjoint(stems(sentence))):
        if letters := _letters(sentence, choices, patterns):
            if len(letters) > 1 or _REFUSAL.search(sentence):
                return None
            return letters.pop()
    return None


def _last_sentences(text: str) -> list[str]:
    """Sentences about the answer, and then those of the last two paragraphs, each from the last."""
    about, last = list[str](), list[str]()
    before_last = last
    for part in text.split("\n\n"):
        before_last, last = last, []
        for line in part.split("\n"):
            last += sentences(plain(line))
        about += filter(_ABOUT_ANSWER.search, last)
    return [*reversed(about), *reversed(last), *reversed(before_last)]


def _letters(sentence: str, choices: Texts, patterns: Patterns) -> set[str]:
    """The letters of choices that a sentence names, by letter or by text, and does not rule out."""
    sentence = sentence[:_LONGEST_SENTENCE]
    if decisive := _DECIDES.search(sentence):
        sentence = sentence[decisive.end() :]
    phrases = dict(zip(LETTERS, map(_phrase, choices), strict=False))
    letters = set()
    for start, end, names in _mentions(sentence, phrases, patterns):
        if _BEFORE.search(sentence[max(0, start - 60) : start]) or is_in_doubt(sentence, start, start):
            continue
        for name in re.findall(r"\b[A-Za-z]\b", names):
            letter = name.upper()
            own_phrase = re.escape(phrases.get(letter, "\n"))
            if not _BEHIND.match(re.sub(rf"(?i){own_phrase}", " ", sentence[end:])):
                letters.add(letter)
    return letters


def names(sentence: str, phrase: str) -> bool:
    """Whether a sentence names a phrase, as whole words, and does not rule it out."""
    return bool(_letters(sentence, (phrase,), _patterns(1)) & {"A"})


def _mentions(sentence: str, phrases: Mapping[str, str], patterns: Patterns) -> list[Mention]:
    """What names choices in a sentence, without what is part of a longer one."""
    found = [(*match.span(), match[1] or match[2]) for match in patterns.named.finditer(sentence)]
    found += [(*match.span(), match[0]) for match in patterns.several.finditer(sentence)]
    for letter, phrase in phrases.items():
        if in_words := _phrase_in(sentence.casefold(), phrase):
            found.append((*in_words.span(), letter))
    return [mention for mention in found if not any(_is_longer(other, mention) for other in found)]


def _is_longer(mention: Mention, part: Mention) -> bool:
    (start, end, _), (inner_start, inner_end, _) = mention, part
    return start <= inner_start and inner_end <= end and end - start > inner_end - inner_start


def _phrase(choice: str) -> str:
    return _ARTICLE.sub("", plain(choice).casefold().strip(" ."))


def _phrase_in(sentence: str, phrase: str) -> Match | None:
    if not re.search(r"[^\W\d_]{2}", phrase):
        return None
    return re.search(rf"(?<!\w)(?<![-+*/^=]\s){re.escape(phrase)}(?:e?s)?(?!\w|\s?[-+*/^=]\s)", sentence)
