"""Words of a plain statement, in the languages people use: verbs, negations, what leads to it, ends or qualifies it."""

from __future__ import annotations

import re

from cerebrum_cli.answers.number_words import with_digits
from cerebrum_cli.answers.phrases import DOUBT, MENTION
from cerebrum_cli.answers.plain_text import plain
from cerebrum_cli.answers.rewriting import in_order, rewriting

# One spelling of what is written in several ways ("isn't", "can't", "7×8", "equals"), without emphasis.
spelled_alike = in_order(
    lambda text: with_digits(plain(text)).replace("’", "'"),
    rewriting(
        (r"(?i)\b(?:is\s|are\s)?(?:equal\sto|equals?)\b|\b(?:is|are)\s=|=", " is "),
        (r"≠", " is not "),
        (r"(?<=\d)\s?[x×*·⋅]\s?(?=\d)", " x "),
        (r"(?i)\bcan(?:'t|not)\b", "can not"),
        (r"(?i)\bwon't\b", "will not"),
        (r"(?i)n't\b", " not"),
        (r"(?i)\b(it|he|she|that|this|there)'s\b|\b(they)'re\b", r"\1\2 is"),
        (r"(?i)\b([cdlnsjmt]|qu)'(?=\w)", r"\1 "),  # "n'est", "l'eau"
        (r"(?i)(?<=\w)-(?:t-)?(?:ils?|elles?)\b", ""),  # "Paris est-elle la capitale ?"
        (
            r"(?i)\b(?:in\sfact|indeed|actually|really|truly|also|tatsächlich|wirklich|auch|gar|en\seffet|vraiment"
            r"|realmente|en\sefecto|también)\b,?",
            "",
        ),
        (
            r"(?i)(?<!\bnot\s)\b(?:no\sdoubt|without\s(?:a\s)?doubt|undoubtedly|of\scourse|certainly|clearly|definitely"
            r"|(?:biolog|botan|mathemat|scientif|techn)ically(?:\sspeaking)?|obviously|natürlich|zweifellos|bien\ssûr|por\ssupuesto|sin\sduda)\b,?",
            "",
        ),
    ),
)

_ARTICLES = """a an the any number der die das den dem des ein eine einen einem einer eines le la les l un une du d el
los las una uno il lo gli o os um uma that dass que qu ne n nombre número zahl c ce , ( ) :"""
_NOT = "not never no nicht nie niemals kein keine keinen keinem keiner keines pas jamais nunca jamás non não"
SKIPPED = frozenset(_ARTICLES.split())  # what comes and goes in a statement, and says nothing
NEGATIONS = frozenset(_NOT.split())
_PRONOUNS = "it they he she this that these those es sie er ce il elle ils elles ello"
PRONOUNS = frozenset(_PRONOUNS.split())
# A negation with one of these denies less than the statement: some swans are not white.
_PARTLY = """some many most several few often sometimes usually mostly partly einige manche viele meisten oft manchmal
quelques plusieurs souvent parfois algunos algunas muchos muchas veces"""
PARTLY = frozenset(_PARTLY.split())

# A row has the forms of a verb that opens a question, each for the others.
_VERB_FORMS = """is are am
was were
does do
did
has have
ist sind
war waren
hat haben
kann können
es son
est sont
è sono"""
VERB_FORMS = [frozenset(row.split()) for row in _VERB_FORMS.split("\n")]
WITHOUT_VERB = frozenset(("does", "do", "did"))  # verbs that a statement does without
PAST_VERBS = frozenset(("did", "had", "has", "have", "hat", "haben", "was", "were"))
_PAST = """ate eat, beat beat, became become, began begin, bore bear, bought buy, broke break, built build, came come,
died die, drew draw, drank drink, fell fall, flew fly, fought fight, found find, froze freeze, gave give, went go,
grew grow, had have, held hold, kept keep, knew know, laid lay, led lead, left leave, lost lose, made make, met meet,
paid pay, ran run, rose rise, said say, sang sing, sank sink, saw see, sent send, sold sell, spoke speak, stood stand,
swam swim, taught teach, took take, thought think, told tell, won win, wore wear, wrote write"""
PRESENT_OF = dict(pair.split() for pair in _PAST.split(","))  # of English verbs that are irregular

# What may stand before a statement and leaves it as it is, or denies it.
LEAD = re.compile(
    r"""(?ix)\A\W*(?:
      (?!alleged|former|histor|hypothet|original|possib|previous|purported|reported|suppos|theoretic|tradition)
      [a-z]+ly(?:\ speaking)?,
    | (?:contrary\ to|contrairement\ à|entgegen|unlike)\ [^,]{1,60},
    | (?:so|thus|hence|therefore|then|and|but|well|yes|also|by\ definition|daher|folglich|donc|por\ lo\ tanto|luego),?
    | (?:(?:short\ )?answer|conclusion|result|summary|verdict): | in\ (?:conclusion|short|summary),
    | it\ is\ (?:true|correct|clear|certain|obvious|a\ fact|(?:well\ )?known)\ that | it\ follows\ that
    | there\ is\ no\ (?:doubt|question)\ (?:about\ it\ )?that
    | (?:nobody|no\ one)\ (?:doubts|denies|disputes|questions)\ that
    | i\ (?:think|believe|am\ (?:sure|certain|convinced))(?:\ that)?
    | we\ (?:see|know|conclude|find)\ that | (?:this|that|which)\ (?:means|shows|proves|implies)\ that
    )\s"""
)
DENYING_LEAD = re.compile(
    r"""(?ix)\A\W*(?:it\ is\ (?:not\ (?:true|correct|the\ case|right)|false|untrue|wrong|incorrect)\ that
    | i\ do\ not\ (?:think|believe)(?:\ that)? | es\ stimmt\ nicht,\ dass | no\ es\ (?:cierto|verdad)\ que)\s"""
)
# Where a statement may begin within a sentence: behind what leads to it, or is set against it.
CONTRAST = re.compile(r"(?i)[,;.]?\s(?:but|however|yet|aber|sondern|mais|pero|sino)[\s,]")
_BEGINNING = rf"""(?i);\s|\s[—–-]\s|,?\s(?:so|thus|hence|therefore|which\smeans|meaning|also|daher|folglich|donc)\s
    |{CONTRAST.pattern.removeprefix("(?i)")}"""
BEGINNING = re.compile(_BEGINNING, re.VERBOSE)
BEGINNING_BEHIND_REASON = re.compile(rf"{_BEGINNING}|,\s", re.VERBOSE)
REASON_FIRST = re.compile(
    r"(?i)\A(?:since|because|given\sthat|although|though|even\sthough|da|weil|obwohl|puisque|bien\sque|aunque)\s"
)
# Where it ends, once it has all words.
_ENDS = """, ; : . ! ( ) — – because since and but so while whereas although though which who rather instead for thus
hence therefore denn weil aber und sondern obwohl car parce mais et porque pero sino y"""
ENDS = frozenset(_ENDS.split())
REASON = re.compile(r"(?i)\A\W*(?:because|since|as|for|so|thus|denn|weil|da|car|parce|puisque|porque|ya)\b")
# "A dolphin is a mammal, not a fish."
CONTRASTED = re.compile(
    r"""(?ix)([^,;.]*?),?\s
    (?:(?:(?:and|but|und|et|y)\s)?(?:not|nicht|kein\w*|pas|no)|rather\sthan)\s(.*)"""
)
IN_YEAR = re.compile(r"(?i)\s(?:in|im\sjahr|en)\s\d{4}\b")  # when something happened does not change that it did

# What leaves a statement open, takes it back, or says that others make it.
QUALIFIES = re.compile(
    rf"""(?ix){DOUBT}|{MENTION}|["“”«»]|\?|\A\W*not\W*\Z|\bnot\s(?:so|true|correct|quite|always|the\scase)\b
    |\b(?:if|unless|except|only|when|until|provided|assum\w+|suppos\w+|according|said|says?|claim\w*|alleged\w*
      |reported\w*|false|wrong|untrue|incorrect|myths?|legend|fiction|mistake|misconception|or|would|could|might|may
      |maybe|perhaps|possibly|(?:at|in)\s(?:best|least|most|name|part|theory)|partl?y|partially|sometimes|almost|nearly
      |hardly|barely|rarely|question|argue\w*|wenn|falls|oder|angeblich|laut|falsch|si|ou|o|selon|faux|según|falso)\b"""
)
RETRACTED = re.compile(
    r"(?i)\b(?:wait|however|wrong|false|incorrect|untrue|myths?|misconception|mistake|falsch|faux|falso)\b"
    r"|\bnot\s(?:so|true|correct|the\scase)\b"
)
