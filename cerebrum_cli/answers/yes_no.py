"""Find yes or no in a reply to a question of that kind."""

from __future__ import annotations

import re

from cerebrum_cli.answers.phrases import NO, YES
from cerebrum_cli.answers.plain_text import plain, sentences

_WORDS = "|".join(sorted({*YES, *NO}, key=len, reverse=True))
# A word that answers: alone, at the beginning or the end of a sentence, behind a label or a conclusion, or bold.
_ANSWER = re.compile(
    rf"""(?ix)
      (?:\A\W*|(?:[:,;]|\b(?:so|thus|hence|therefore|is|be|answer|verdict|that['’]s)\b|\*\*)[\s*_"]*)
      (?P<not>not\s)?(?P<word>{_WORDS})(?![\w'])(?!\s(?:one|longer|more|number|other|reason|matter|answer|way)\b)
      (?=\W*(?:\Z|[,.;:!?)—–-]|\*|(?:because|since|as|it|they|this|that|the|und|et|y|e|,)\b))
    """
)


def yes_or_no(text: str) -> str | None:
    """The last "yes" or "no" with which a sentence answers; None if there is none."""
    for line in reversed(text.split("\n")):
        for sentence in reversed(sentences(plain(line))):
            found = [*_ANSWER.finditer(sentence.strip())]
            if found:
                is_yes = found[-1]["word"].casefold() in YES
                return "yes" if is_yes != bool(found[-1]["not"]) else "no"
    return None
