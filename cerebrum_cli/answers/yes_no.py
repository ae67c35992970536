"""Find yes or no in a reply to a question of that kind."""

from __future__ import annotations

import re

from cerebrum_cli.answers.plain_text import plain, sentences

_YES = """yes yep yeah yup true correct right indeed absolutely certainly definitely affirmative ja oui sí si sì sim да
是 是的 对 はい 예 네"""
_NO = "no nope false incorrect wrong untrue nein non não нет 否 不是 不 いいえ 아니요 아니오"
_WORDS = "|".join(sorted(f"{_YES} {_NO}".split(), key=len, reverse=True))
# A word that answers: alone, at the beginning or the end of a sentence, behind a label or a conclusion, or bold.
_ANSWER = re.compile(
    rf"""(?ix)
      (?:\A\W*|(?<!\bmay\s)(?<!\bmight\s)(?<!\bcould\s)(?:[:,;]|\b(?:so|thus|hence|therefore|is|be|answer|verdict|that['’]s)\b|\*\*)[\s*_"]*)
      (?P<not>not\s)?(?P<word>{_WORDS})(?![\w'])
      (?!\sthat\b.{{0,200}}(?:\b(?:but|no|not)\b|n't\b))
      (?!\s(?:one|longer|more|number|other|reason|matter|answer|way)\b)
      (?=\W*(?:\Z|[,.;:!?)—–-]|\*|(?:because|since|as|it|they|this|that|the|und|et|y|e|,)\b))
    """
)


_OPENING = re.compile(
    r"(?i)\W*(yes|no|ja|nein|oui|non|sí|sim|não|да|нет|はい|いいえ)(?![\w'])(?=[*_]*(?:[.!。！*]|\Z))(?!\.\s?\d)"
)
_CORRECTED = re.compile(r"(?i)\b(?:answer|correction|hmm|mistake|so|sorry|therefore|thus|wait)\b")
# Sentences that answer without yes or no.
_IT_IS = r"(?:it|this|that|which)(?:\ is|['’]s)"
_HEDGED = re.compile(
    rf"""(?ix)(?:\w+,\s)?(?:
      (?P<no> (?:of\ course|(?:most\ )?likely|perhaps|rather|\w{{4,}}ly)\ not
        | not\ (?:at\ all|really|likely|possible|necessarily|true|correct) | impossible
        | (?:i\ )?(?:do\ not|don['’]t)\ (?:think|believe)\ so
        | {_IT_IS}\ (?:not\ possible|impossible|not\ the\ case|not\ true|false)
        | (?:by\ no\ means|under\ no\ circumstances|no\ way|never) | hardly | unlikely | (?:no|not\ a)\ chance
        | i\ doubt\ (?:it|that) | auf\ keinen\ fall | eher\ nicht | (?:wohl\ )?kaum | plutôt\ non
        | pas\ du\ tout | en\ absoluto
        | (?:sicher|natürlich|bestimmt)\ nicht | bien\ sûr\ que\ non | claro\ que\ no | por\ supuesto\ que\ no )
      | (?P<yes> of\ course | (?:i\ )?(?:think|believe)\ so
        | (?:probably|(?:most\ )?likely|almost\ certainly|perhaps|maybe),?\ (?:yes|so)
        | {_IT_IS}\ (?:possible|the\ case|true) | natürlich | sicher | bestimmt | bien\ sûr | claro(?:\ que\ sí)?
        | por\ supuesto
        | (?:very|most|highly|quite)\ likely | sure )
    )(?:\W* | (?::|,|\ because|\ since)\s.*)"""
)


def hedged(sentence: str) -> str | None:
    """Yes or no of a sentence that says nothing else, without these words: "Of course not.", "I think so."."""
    found = _HEDGED.fullmatch(sentence.strip())
    return found and found.lastgroup


def yes_or_no(text: str) -> str | None:
    """The "yes" or "no" that opens a text, else the last with which a sentence answers; None if there is none."""
    if (opening := _OPENING.match(text)) and not _CORRECTED.search(text):
        return "yes" if opening[1].casefold() in _YES.split() else "no"
    for line in reversed(text.split("\n")):
        for sentence in reversed(sentences(plain(line))):
            if meant := hedged(sentence):
                return meant
            found = [*_ANSWER.finditer(sentence.strip())]
            if found:
                is_yes = found[-1]["word"].casefold() in _YES.split()
                return "yes" if is_yes != bool(found[-1]["not"]) else "no"
    return None
