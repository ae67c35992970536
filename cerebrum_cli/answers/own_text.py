"""The text of a reply that is its own: without reasoning, remarks about the answer, and turns that a model made up."""

from __future__ import annotations

import re

from cerebrum_cli.answers.phrases import ASIDE_LINE, REMARK
from cerebrum_cli.answers.plain_text import has_content, without_markup
from cerebrum_cli.answers.rewriting import rewriting
from cerebrum_cli.answers.statements import AS_IS, markers_in

_without_reasoning = rewriting(
    (r"\r\n", "\n"),
    (r'\\"', '"'),
    ("\N{MINUS SIGN}", "-"),
    (r"(?s)\A.*</think(?:ing)?>|<think(?:ing)?>.*+\Z", ""),
    where=r'\r|\\"|\u2212|think',
)
_NEXT_QUESTION = re.compile(
    r"(?im)^[ \t#*>_-]*+(?:question|q|user|human|problem|exercise|instruction|input)\s?\d*+"
    r"(?:[*_]*+:|[.)]\s|(?<=\d)[ *_]*$)"
    r"|^\#{1,4}\s(?:question|exercise|problem|instruction|input)\b|^(?:the following (?:are|is)\b)",
)
# What ends a turn in the prompt formats of models: another turn follows.
_END_OF_TURN = re.compile(
    r"<\|(?:start_header_id|im_start|channel|start)\|>\w*(?:<\|\w+\|>)?|<[|｜][^<>\n]{1,40}[|｜]>|<\|?/?(?:s|eos|bos|pad|unk|turn|end_of_\w+|start_of_turn|endoftext|extra_id_\d+)\|?>|<turn\|>"
    r"|\[(?:/?INST|EOS|\|\w+\||end of text)\]"
)


def own_text(text: str, is_complete: bool) -> tuple[str, bool]:
    """Text of a reply without its reasoning and remarks about the answer, and whether it is complete.

    It is complete, too, if another turn follows, which a base model made up.
    """
    text = _without_reasoning(text)
    turns = [turn for turn in _END_OF_TURN.split(text) if has_content(turn)]
    text = without_markup(turns[0] if turns else text)
    own, *following = _NEXT_QUESTION.split(text, maxsplit=1)
    is_cut = len(turns) > 1
    if following and _holds_answer(own):
        text, is_cut = own, True
    return _without_remarks(text.strip()), is_complete or is_cut


def _holds_answer(text: str) -> bool:
    if re.search(r"\d", text) or AS_IS.match(text.strip()):
        return True
    marker = markers_in(text).search(text)
    return marker is not None and has_content(text[marker.end() :])


def _without_remarks(text: str) -> str:
    """A text without what is said about the answer, unless nothing else holds a value."""
    shorter = ASIDE_LINE.sub("", REMARK.sub("", text)).rstrip()
    return shorter if has_content(shorter) else text
