"""What answers a question, where its text makes that certain: yes or no, or one of the choices that it lists.

A wrong kind turns a right answer into a wrong one, so whatever may ask for something else is open: "Is it 5 or 7?",
"Can you tell me ...?", a second question, a task behind the question.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

from cerebrum_cli.core.text import Match, Texts


class Expected(NamedTuple):
    """The kind of answer that a question has; `choices` are their texts, lettered from A."""

    kind: Literal["any", "yes or no", "words", "choice"] = "any"
    choices: Texts = ()


_LONGEST = 20_000  # characters; the question about a longer text may be anywhere in it
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’»)*]*\s+|(?<=[。？！])|\n+")
_QUESTION_ENDS = ("?", "？", "か", "か。")
_LABEL = re.compile(
    r"(?:[^\w¿]|_)*(?:(?:question|q|frage|pregunta|domanda|pergunta|вопрос|问题|質問|질문)\s?\d{0,3}\s?[:：.)](?:[^\w¿]|_)*)?"
)

# What is to be answered with, if nothing but punctuation or an explanation follows: not "10 true or false questions".
_PAIR = r"""(?:
    (?:yes|true)(?:\s?/\s?|,?\sor\s["'*]*)(?:no|false) | ja\s?(?:oder|/)\s?nein | (?:richtig|wahr)\soder\sfalsch
  | oui\s?(?:ou|/)\s?non | vrai\sou\sfaux | s[íìi]\s?[ou/]\s?no | vero\so\sfalso | verdadero\so\sfalso
  | sim\s?(?:ou|/)\s?não | verdadeiro\sou\sfalso | да\s?(?:или|/)\s?нет | (?:верно|правда)\sили\s(?:неверно|ложь)
  | 是(?:还是|或者?|/)(?:否|不是) | 判断对错 | はいか、?いいえ | 예\s?(?:또는|/)\s?아니[요오]
)"""
_DEMAND = re.compile(
    rf"""(?x)
      (?: (?:(?:please|just|only)\s)?(?:answer|respond|reply|say|decide|judge|state|determine|output|antworte|beantworte
        |réponds|répondez|responde|contesta|rispondi|responda|ответь|ответьте|отвечай|请回?答?)\b[^?]*?
        | [^?]*[,?:]\s? )?
      ["'(*]*{_PAIR}["')*]* \s?(?:only|nur|seulement|solo|apenas|로.*|で.*)?
      (?:\W* | [?:.,：]\s.* | ：.* | \s(?:and|und|et|y|e|и|based)\s.*)
    """
)

_PAIRS = re.compile(rf"(?x){_PAIR}")

# A sentence that only says how to answer.
_INSTRUCTION = re.compile(
    r"""(?x) (?:(?:please|now|first|then|and|but|also|just|only)[\s,]+)*
    (?: (?:answer|respond|reply|think|reason|explain|justify|choose|select|pick|finish|end|let['’]?s|be|do\snot|don['’]t
        |why|your|you\s(?:must|should)|the\sanswer)\b
      | (?:give|show|state|write|provide|output|return|put)\b
        (?=.*\b(?:answer|reason|reasons|reasoning|explanation|letter|yes|steps|work|proof)\b)
      | (?:antworte|beantworte|begründe|denke?|erkläre|réponds|répondez|explique|réfléchis|justifie|responde|contesta
        |explica|piensa|rispondi|spiega|ragiona|responda|pense|ответь|ответьте|отвечай|объясни|рассуждай|думай)\b
      | (?:final\sanswer|a|antwort|réponse|respuesta|risposta|resposta|ответ|答案|答え|정답|답)\s?[:：]
      | (?=[^\x00-\x7f])(?=.*(?:回答|作答|一步|解释|答え|説明|考え|단계|답하|답해|설명)) )
    (?!.*(?:\d|\b(?:number|integer|amount|value|decimal|fraction|factors?)\b)) [^?？]* (?<!:\s) (?:or\snot\?|not\?)?"""
)
_TASK = re.compile(  # something else to be done, with the text that follows or besides
    r"""(?x)(?:\A|\b(?:then|and|please|also),?\s)
    (?:calculate|classify|complete|compute|continue|convert|correct|count|edit|extract|find|fix|identify|list|name|order
      |implement|generate|draw|write(?!\s(?:yes|no|your|the|true|only|just|down))|paraphrase|proofread|rank|rate|repeat|score
      |rephrase|rewrite|simplify|solve|sort|spell|summarize|summarise|translate|traduis
      |traduisez|traduce|traduci|traduza|übersetze|переведи|переведите)\b | 翻译 | 翻訳 | 번역"""
)
# A question for a name: of a person, a place, a day, a thing.
_NAMING = re.compile(r"(?:please\s)?(?:classify|name|what\sis\sthe\s(?:capital|name))\b")
_THINGS = """actor animal artist author bird city clause color colour command composer continent country currency day
element flower fruit gas god instrument keyword lake language metal month mountain ocean organ person planet
president river scientist
sea season sport state town tree weekday word writer"""
_PLACES_AND_BEINGS = """animal bird city continent country fish fruit island lake mammal mountain ocean planet river sea
tree"""
_NAMES = """antonym author capital chemical\\ssymbol currency language name opposite sentiment symbol synonym
title"""
_FOR_WORDS = re.compile(
    rf"""(?x)(?:and\s|so\s|then\s|in\s|on\s|at\s|from\s|to\s|by\s|dans\s|en\s|auf\s|¿\s?)*
    (?: who(?:m|se)?\b | where\b(?!.*[\d=()]|\sis\s(?:[a-z]|the\s(?:curve|function|graph))\s)
      | (?:which|what)\s(?:\w+\s){{0,2}}?(?:{"|".join(_THINGS.split())})\b
      | what['’]?s?\s(?:is|was|are|were)?\s?(?:the\s)?(?:\w+\s){{0,2}}?(?:{"|".join(_NAMES.split())})\b
      | what['’]?s?\s(?:is\s|was\s)?the\s(?:\w+est|most\s\w+)\s(?:\w+\s)?(?:{"|".join(_PLACES_AND_BEINGS.split())})\b
      | (?:please\s)?(?:name|classify)\b
      | wer\b | wen\b | wo\b | wie\sheißt\b
      | was\sist\sd(?:as|er|ie)\s(?:\w+te\s)?(?:berg|fluss|hauptstadt|insel|kontinent|land|metall|meer|ozean
        |planet|säugetier|see|sprache|stadt|tier|vogel|währung)\b
      | welche[mnrs]?\s(?:baum|berg|element|farbe|fluss|gas|insel|kontinent|land|meer|metall|monat|ozean|person|planet
        |see|sprache|stadt|tag|tier|vogel|wochentag|währung)\b
      | qui\b | où\b
      | quel(?:le)?\sest\s(?:la\s|le\s|l['’])(?:plus\s\w+\s)?
        (?:animal|capitale|continent|fleuve|langue|montagne|monnaie|océan|pays|planète|ville)\b
      | quién\b | dónde\b
      | cuál\ses\s(?:el|la)\s(?:animal|capital|ciudad|continente|idioma|moneda|montaña|nombre|océano|país|planeta|río)\b
      | chi\b | dove\b | qual\sè\sla\scapitale\b )"""
)
_FOR_NUMBERS = re.compile(r"\b(?:how\s(?:many|much|far|long|old|tall)|amount|number|percent\w*|total|sum|integer)\b")
# A question of yes or no in each language, and the words with which it may be another one.
_OPENING = r"""(?: (?:according|assuming|based|for|given|if|in|since|suppose|under)\b[^?]*?,\s(?:then\s)?
    | (?:so|now|and|then),?\s )?"""
_CLOSED = (
    (
        _OPENING
        + r"""(?:am|are|can|could|did|do(?!\s\d)|does|had|has|have|is|may|might|must|should|were|will|would
        |was(?!\s(?:bedeut|bleib|bring|erg|gib|gilt|ha[bt]|hei|ist|kann|kommt|kost|mach|sag|sind|soll|tut|war|wär|wird)))
        (?:n['’]t)?\s.*""",
        r"""\b(?:or(?!\snot\W*\Z)|how|what|which|who|whom|whose|where|why|if\sso|you|your|me|each|way|difference
        |(?:can|could|may|might|should|will|would)\s(?:i|we(?!\s(?:conclude|infer))|anyone|anybody|someone|somebody)
        |(?:are|equals?|is|of|to)(?=\W*\Z)|to\s(?:calculate|compute|determine|explain|figure|find|give|help|list|name|say|show|solve|tell|work|write))\b
        |_{2,}|(?<!true)(?<!correct)(?<!statement)(?<!\s):\s""",
    ),
    (
        r"""(?:darf|dürfen|existiert|gab|gibt|gilt|haben|hat|ist|kann|können|muss|müssen|sind|soll|sollen|stimmt|war|waren
        |wird|werden)\s.*""",
        r"\b(?:oder(?!\snicht\W*\Z)|wie|wieviel|was|wer|wen|wo|wann|warum|welche[mnrs]?|du|dir|mir|ihr|möglich|können\ssie)\b",
    ),
    (
        r"(?:est-ce\squ['’e]|.*\w-(?:t-)?(?:ils?|elles?)\b).*",
        r"""\b(?:ou(?!\snon\W*\Z)|combien|comment|lequel|laquelle|où|pourquoi|quand|quel|quelle|quels|quelles|qui|quoi|tu
        |vous|me|moi|nous)\b|qu['’](?:est-ce|il|elle|y)|\bque\s\w+-""",
    ),
    (
        r"¿?\s?(?:es\scierto\sque|(?<=¿)(?:es|está|están|existe|existen|era|fue|ha|han|hay|pueden|son|tiene|tienen))\s.*",
        r"\b(?:[ou](?!\sno\W*\Z)|cu[aá]l|cu[aá]les|cu[aá]nt[ao]s?|qué|quién|dónde|cuándo|cómo|me|nos)\b",
    ),
    (
        r"(?:è|é|c['’]è|esiste|existe|há)\s.*",
        r"""\b(?:o(?=\s[\d-])|oppure|ou(?!\snão\W*\Z)|quant[aeio]s?|qua[li]s?|quai|che\scosa|cosa|come|como|dove|onde
        |chi|quem)\b""",
    ),
    (
        r".*\w\sли\b.*",
        r"\b(?:или(?!\sнет\W*\Z)|как|как\w\w|кто|где|когда|почему|зачем|сколько|чему|ты|вы|мне)\b|(?<!ли,\s)\bчто\b",
    ),
    (r".*(?:[吗嗎]|是不是.*|有没有.*|能不能.*|会不会.*)", r"[几幾谁哪怎你您请我或]|多少|什么|为何|还是|告诉"),
    (
        r".*(?:です|ます|でしょう|ません|ました)か",
        r"[何誰]|いくつ|いくら|だれ|ど[このれうん]|どちら|どっち|いつ|なぜ|または|か、|くださ|教え|あなた|計算",
    ),
    (
        r".*(?:니까|가요|나요|까요)",
        r"몇|얼마|무엇|무슨|뭐|누|어디|언제|왜|어[떻느떤]|아니면|또는|당신|알려|주세요|주시|주실|계산",
    ),
)
_QUESTIONS = tuple((re.compile(rf"(?x){closed}"), re.compile(rf"(?x){is_open}")) for closed, is_open in _CLOSED)
_UNMARKED = re.compile(r"(?:is|are|was|were|does)\s[^:;,.]*")
_STATEMENT_BELOW = re.compile(r"(?:is|are) the following\b.*\b(?:statement|sentence|claim|argument)\b.*")

# "A) one B) two", "(A) one", "- **A.** one", each letter written as the first.
_CHOICE = re.compile(r"(?<!\S)[*_•>-]*\s?([(（]?)([A-Za-z])([).:）、：])(?:[*_]*(?=[\s$\\])|(?<=[)）、]))")
_CHOOSE = re.compile(
    r"(?i)\b(?:which|choose|select|pick|options?|choices|letter|best|answer:)(?!\w)|_{2,}|[(（]\s*[)）]|[?？]\W*\Z|答案"
)
_NOT_ONE = re.compile(
    r"""(?ix)\b(?:both|(?:for\s)?(?:each|every)(?=\s(?:letter|of|one)|\W*\Z)|(?<!of\s)(?:these|those)|that\sapply
    |respectively|explain|describe|match|put|in\sorder
    |which(?:\sof\s(?:the\s|these\s?|those\s?)?\w*)?\s(?:are|two|three|were)|of\s(?:the\s)?(?:two|three|four|five))\b"""
)
_TOTAL = re.compile(r"(?i)\b(?:all|altogether|average|combined|product|sum|together|total)\b")
_AMOUNT = re.compile(r"[^\w\s]*\d\S*(?:\s\S+)?")


@lru_cache(16)
def expected_answer(question: str) -> Expected:
    """The kind of answer that a question asks for; "any" unless its text makes that certain."""
    if len(question) > _LONGEST:
        return Expected()
    if choices := _choices(question):
        return Expected("choice", choices)
    if _is_yes_or_no(question):
        return Expected("yes or no")
    return Expected("words" if _asks_for_words(question) else "any")


def _asks_for_words(question: str) -> bool:
    """Whether the last question of a text asks for a name, not for a number or an expression."""
    asked = [
        sentence for sentence in _sentences(question) if sentence.endswith(_QUESTION_ENDS) or _NAMING.match(sentence)
    ]
    return bool(asked) and _FOR_WORDS.match(asked[-1]) is not None and not _FOR_NUMBERS.search(asked[-1])


def _sentences(text: str) -> list[str]:
    """The sentences of a text in lower case, without labels such as "Question:"."""
    labelled = (_LABEL.sub("", sentence, count=1) for sentence in _SENTENCE_END.split(text.lower()))
    return [sentence.strip(" \t\r*_\"'”’»)") for sentence in labelled if sentence]


def _is_yes_or_no(text: str) -> bool:
    sentences = _sentences(text)
    is_demanded = any(map(_DEMAND.fullmatch, filter(_PAIRS.search, sentences)))
    about = [sentence for sentence in sentences if not (_INSTRUCTION.fullmatch(sentence) or _PAIRS.match(sentence))]
    questions = [sentence for sentence in about if sentence.endswith(_QUESTION_ENDS)]
    if len(about) == 1 and _UNMARKED.fullmatch(about[0]):
        questions = about
    if len(questions) > 1 or not (questions or is_demanded):
        return False
    question = "".join(questions)
    if not (is_demanded or question == about[-1] or _STATEMENT_BELOW.match(question)):
        return False
    question = _PAIRS.sub("", question).rstrip(" ,?？。")
    if any(closed.fullmatch(question) and not is_open.search(question) for closed, is_open in _QUESTIONS):
        is_demanded = True
    elif any(is_open.search(question) for _, is_open in _QUESTIONS):
        return False
    return is_demanded and not any(map(_TASK.search, sentences))


def _choices(text: str) -> Texts:
    """The choices at the end of a question that asks for one of them; none if it may ask for something else."""
    run = _marks(text)
    if len(run) < 2:
        return ()
    last, _, below = text[run[-1].end() :].partition("\n")
    texts = [*(text[mark.end() : following.start()] for mark, following in pairwise(run)), last]
    choices = tuple(choice.strip(" \t\n*_;,-") for choice in texts)
    if "" in choices or "?" in "".join(choices) or not all(map(_INSTRUCTION.fullmatch, _sentences(below))):
        return ()
    stem = text[: run[0].start()].strip()
    if not _CHOOSE.search(f"{stem}\n{below}") or _NOT_ONE.search(stem) or any(map(_TASK.search, _sentences(stem))):
        return ()
    if _TOTAL.search(stem) and not all(map(_AMOUNT.fullmatch, choices)):
        return ()
    return choices


def _marks(text: str) -> list[Match]:
    """The marks of the last choices in a text, from A on, all written as the first."""
    run = []
    for mark in _CHOICE.finditer(text):
        opening, letter, closing = mark.groups()
        if letter in "Aa":
            run = [mark]
        elif run and run[-1].groups() == (opening, chr(ord(letter) - 1), closing):
            run.append(mark)
    return run
