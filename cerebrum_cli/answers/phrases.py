"""Words around answers, in the languages people use: labels, remarks, corrections, fillers, negations."""

from __future__ import annotations

import re

_LABELS = (
    *("antwort", "lösung", "ergebnis", "réponse", "résultat", "respuesta", "resultado", "solución", "risposta"),
    *("risultato", "resposta", "ответ", "результат"),
)
_UNSPACED_LABELS = ("答案", "答え", "解答", "正解", "정답", "답")  # which may stand within a word
LABELS = rf"""(?:\b(?=[aelrsор])(?:{"|".join(_LABELS)})\b
    |(?=[答解正정답])(?:{"|".join(_UNSPACED_LABELS)}))"""
LABEL_WORDS = (*_LABELS, *_UNSPACED_LABELS)  # a text without any of these, in lower case, has no such label
COPULAS = r"(?:(?:ist|lautet|beträgt|est|es|è|é)\b|[是为為は은는])"

# How a line or sentence begins that is about the answer, or no part of it: its rest is no answer either.
_REMARKS = r"""
    let\ me\ know | (?:would|do|did|shall|should|could|can|may|are)\ (?:you|i|we)\b[^\n]*\?
  | (?:i\ )?hope\ (?:this|that|it)\b | feel\ free | happy\ \w+ing
  | (?:please\ )?(?:note|remember|recall)\b
  | (?:pro\ |fun\ )?(?:tip|fact|hint|check|verification|explanation|reflection|difficulty|confidence)s?(?=\W*(?::
    |\n|\Z))
  | (?:to\ )?(?:double[-\ ])?check(?:ing)?\b[^\n]*?
  | (?:you|we|one)\ can\ (?:easily\ |also\ )?(?:check|confirm|verify)\b | to\ verify(?=[,:]|\ (?:it|this)\b)
  | as\ a\ check | a\ common\ (?:mistake|error)
  | if\ (?:instead|you\ (?:have|need|want)) | this\ (?:assumes|took|matches|agrees)
  | if\ any | any\ (?:other|more) | thanks | thank\ you | good\ luck | sorry\ about | we\ (?:translated|used)
  | how\ else | what\ else
  | (?:lass|sag)\ mich | möchtest\ du | ich\ hoffe | n['’]hésite | voulez-vous | veux-tu | j['’]espère
  | ¿?quieres | espero\ que | ¿?te\ gustaría | vuoi | spero\ che
  | quer\ que | deseja | надеюсь | хотите | 如果您?(?:还|有) | 希望 | 验算 | 検算 | 確認 | 검산 | probe\b | vérification
  | comprobación | verifica\b | проверка
"""
REMARK = re.compile(
    rf"(?im)(?<!\S)(?:^(?:\d{{1,2}}[.)]\ )?|(?<=[.!?。]\ )|(?<=[.!?]\n))[^\w\n(¿]{{0,12}}+(?x:{_REMARKS})[^\n]*+"
)
ASIDE_LINE = re.compile(r"(?m)^[ \t*_>]*\((?=[^()\n]*[^\W\d_]{3})[^()\n]*\)[.*_ ]*$")

CORRECTION = r"""
    (?:(?<![^\s"(*])(?=[wsohceapi等不])(?:wait|sorry|oops|whoops|hmm|correction|edit|apologies|pardon|i\ mean|or\ rather
    |scratch\ that|on\ second\ thought|entschuldigung|等等|不对)\b
      | \b(?=[im应])(?:my\ (?:apologies|mistake|bad) | i\ (?:mis\w+|made\ an?\ (?:\w+\ )?(?:error|mistake))
  | me\ suis\ trompé | it\ should\ be | 应该是)
      | (?=[.—–,])(?:\.{3}|—|–|,)\ no,?(?=\s) | ~~\ ?(?=[\w$]))
"""
# In lower case; a text without any of these has no correction.
_CORRECTION_WORDS = """wait|sorry|oops|whoops|hmm|correction|edit|apologies|pardon|i mean|or rather|scratch that
|on second thought|entschuldigung|等等|不对|my mistake|my bad|i mis|i made a|me suis trompé|it should be|应该是
|... no|— no|– no|, no|~~"""
CORRECTION_WORDS = re.split(r"\n?\|", _CORRECTION_WORDS)

FILLER = r"""
    \w{3,}ly | indeed | still | now | then | so | well | no\ (?:more|less|fewer)\ than | no | also | again
  | just | always | almost | at | by | about | around
  | of\ course | in\ (?:all|fact|total) | (?:given|followed)\ by | none\ other\ than | altogether | overall
  | all\ in\ all | circa | ca\.? | approx\.? | equals | it['’]s | that['’]s | it\ is
  | i\ (?:believe|think|guess|get)
  | (?:(?:an?|the)\ )?(?:amount|integer|letter|number|result|sum|total|value)(?:\ of)?
  | USD | EUR | GBP | CHF | CAD | AUD | INR | JPY | CNY | Rs\.? | R | AU | HK | kr\.?
"""

# What leaves open whether a value behind it, in the same clause, is the answer.
_CANNOT = (
    r"""(?:can(?:not|['’]t)|could\ ?n[o'’]t|unable\ to|(?:not|im)\ ?possible\ to|(?:do|does|did)(?:\ not|n['’]t))"""
)
_ASKS = r"(?:ask(?:s|ed|ing)?|wants?\ to\ know|wonder\w*|question\ is|question\ whether)"
DOUBT = rf"""
    \b{_CANNOT} \ (?:be\ )?
      (?:believe|confirm|conclude|decide|find|determine|know|mean|prove|say|see|show|tell|think|verify)\w*
  | \b{_ASKS} \ (?:me\ |us\ )?(?:for|how|if|what|whether|which)
  | \b(?:check|decide|determine|figure\ out|find\ out|know|learn|see|show|test|tell|verify)\ if\b
  | \b(?:assume|suppose|supposing)\ (?:that\ )?(?:it|there|we)\b | \bestimates\ (?:differ|range|vary)\b
  | \b(?:is|are|remains?)\ (?:not\ known|unknown)\b | \b(?:aim|challenge|goal|problem|task)\ is\ to\b
  | \b(?:nobody|no\ one)\ (?:can\ say|knows)\b
  | \b(?:several|some|various)\ (?:accounts|authors|books|chronicles|estimates|historians|records|reports|scholars
    |sources|texts|websites)\b
  | \b(?:some|several|various)\ \w+\ (?:claim|mention|report|say|state)\b | \b(?:einige|manche)\ \w+\ (?:nennen|sagen)\b
  | \b(?:certains|plusieurs)\ (?:\w+\ )?(?:disent|citent|indiquent)\b | \balgun[ao]s\ (?:\w+\ )?(?:dicen|mencionan)\b
  | \b(?:some|manche|einige|certains|algunos)\b[^.;\n]{{0,80}},\ (?:others|andere|d['’]autres|otros)\b
  | \b(?:not|n['’]t|isn['’]t|never) \ (?:certain|clear|entirely|known|necessarily|quite|sure)
  | \b(?:not\ (?:the\ case|true|correct)|false|untrue|wrong)\ that\b
  | \b(?:incorrect|wrong|a\ mistake)\ to\ (?:answer|assume|claim|conclude|say|think)\b
  | \b(?:doubt\w*|uncertain|unclear|unlikely|unsure|whether)\b | \b(?:even\ )?if \ (?:the\ answer|it|x|we)\b
  | \b(?:some|many|most|others|people|you)\ (?:people\ )?(?:(?:may|might|could|would)\ )?
    (?:assume|believe|claim|guess|say|think)\b
  | \bi \ (?:(?:at\ )?first\ |initially\ |originally\ )?(?:thought|assumed|guessed)\b
  | \bob\b | \bnicht\ (?:sicher|unbedingt) | \b(?:sais|savoir|demande|dire|sûre?)\ (?:pas\ )?(?:si|que)\b
  | \bpas\ (?:sûre?|forcément|nécessairement)\b | \b(?:sé|sabe|saber|sabemos|pregunta|decir)\ si\b
  | \bno\ (?:estoy\ segur[oa]|necesariamente)\b
"""
# Values of which none is said to be the answer: "it could be 4 or 6", "it may be 4, but I am not sure".
POSSIBLE = r"""
    (?:\b(?:assuming|if|suppose|supposing)|\A(?:had|were))\ [^,.;\n]{1,80},\ [^,.;\n]{0,60}
      \bwould\ (?:[^.;\n]|\.\d){1,60}?,?\ (?:but|though|yet)\ (?:i|it|nobody|nothing|that|there|this|we)\b |
    \b(?:maybe|perhaps|possibly|vielleicht)\b[^.;\n]{1,60},?\ (?:or\ |oder\ )?
      (?:maybe|perhaps|possibly|vielleicht)\ \S+ |
    \bif\ (?:\w+\ ){1,3}were\ [^,.;\n]{0,80},(?=[^.;\n]{0,120}\bwould\b) |
    \bwould\ (?:only\ )?be\ \S+(?=\ (?:only\ )?if\b) | \b(?:could|may|might)\ (?:also\ )?be\ (?:either\ )?\S+
    (?:,?\ or\ (?:it\ )?(?:(?:could|may|might)\ (?:also\ )?be\ )?\S+
      | (?=,?\ (?:but|though)\ (?:i|we|it|nobody|that|there|this)\b))
"""
REFUSAL = r"""
    \b(?:can(?:not|['’]t)|could\ not|(?:im|not\ )possible\ to|unable\ to)\ (?:be\ |we\ )?(?:determin|answer|calculat)
  | \b(?:none\ of\ the\ (?:above|given|options)|(?:not\ enough|insufficient)\ (?:data|info))
  | \b(?:can(?:not|['’]t)|impossible\ to)\ (?:be\ sure|know|say|tell)
      (?:\ (?:exactly|for\ (?:certain|sure)|which(?:\ one)?))?(?=[.!]*\Z|[;:])
  | \beither\ [A-H]\ or\ [A-H]\b
  | \binformation\b(?:\ \w+){0,3}\ is\ (?:incomplete|insufficient|missing|not\ (?:enough|sufficient))\b
"""

# What denies words behind it in its clause, and what only mentions them, as the answer of others.
DENIAL = r"""
    \b(?:not(?!\ (?:just|merely|only|simply)\b)|never|neither|nor|cannot|hardly|scarcely|few\ people|nobody|no\ one
      |(?:is|are|was|were)\ (?:ruled\ out|excluded|eliminated)|\w+n['’]t|rather\ than|unlike|instead\ of)\b
  | \b(?:nicht(?!\ nur\b)|kein\w*|pas(?!\ seulement\b)|jamais|non(?!-)|nunca)\b
  | (?<!\w-)\bno\ (?=\w)(?!(?:doubt|question|sólo|solo|wonder)\b) | :\ (?:no|false|wrong)\W*\Z
"""
_BELIEVES = r"(?:assum|believ|claim|confus|expect|guess|say|think|thought)\w*"
_BELIEVED = "(?:assumed|attributed|believed|claimed|confused|credited|mistaken|thought)"
MENTION = rf"""
    \b(?:people|many|most|some|others|one|students|you)\ (?:\w+\ ){{0,3}}{_BELIEVES}
  | \b(?:viele|manche|einige|(?:die\ )?meisten)\ (?:\w+\ ){{0,2}}(?:behaupten|denken|glauben|halten|meinen|sagen)\b
  | \b(?:beaucoup|certains|plusieurs|on|gens)\ (?:\w+\ ){{0,2}}(?:croi[st]|croient|disent|dit|pensent?)\b
  | \b(?:muchos|algunos|gente|mayoría)\ (?:\w+\ ){{0,2}}(?:cree|creen|dice|dicen|piensan?)\b
  | \b(?:common|frequent|popular|typical|widespread)\ (?:answer|belief|error|guess|misconception|mistake|myth)\b
  | \A(?:until|bis|jusqu['’]en|hasta)\ \d{{4}}\b
  | \bfor\ (?:a\ long\ time|centuries|decades|many\ years)\b | \b(?:was|were)\ once\b | \blange\ (?:zeit\ )?war\b
  | \b(?:before\ (?:that|then)|until\ then|used\ to\ be|previously|formerly|früher|autrefois|antes)\b
  | \b(?:contrary\ to|contrairement\ à|entgegen|contra\ lo\ que)\b
  | \b(?:commonly|falsely|frequently|mistakenly|often|sometimes|wrongly)\ (?:\w+\ )?{_BELIEVED}\b
"""

# What is only compared with the answer, or counts something else.
NOT_IT = r"""
    \A\W*(?:above|below|beyond|over|under|up\ to) | \b(?:at\ (?:least|most)
  | (?:fewer|greater|higher|less|lower|more)\ than
  | (?:anything\ )?(?:but|except)(?=\s\S+\W*\Z) | multiple\ of | divisor\ of | factor\ of
    | neither | nor | (?:(?:ca|is|are|was)n['’]t|(?:can)?not)(?:\ be|\ equal|\ necessarily)?
  | (?:a\ )?(?:half|third|quarter|square\ root|cube\ root|reciprocal|log\w*)(?:\ of)? | between\ \S+\ and
    | (?:chapter|equation|figure|line|page|section|step|table|theorem|question|problem|exercise)s? | mindestens
  | höchstens | nicht | halb\ so\ viel\ wie
    | au\ (?:moins|plus) | n['’]est\ pas | (?:al|por\ lo)\ menos | no\ es | almeno | pelo\ menos
  | не\ (?:менее|более)? )
  | 至少 | 最多 | 不是
"""
