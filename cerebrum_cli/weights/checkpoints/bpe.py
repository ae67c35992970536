"""Translate the BPE of a tokenizer.json for llama.cpp, so that it gives the same token ids. Pure.

llama.cpp selects pre-tokenizers by name, and merges SentencePiece tokens by score, not by rank. From llama.cpp
0c1e57098, src/llama-vocab.cpp. A tokenizer that it cannot reproduce raises Unsupported, a damaged one ValueError,
LookupError, TypeError or AttributeError.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Set
from itertools import pairwise
from typing import Any, NamedTuple

from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import truncate

SPACE = "▁"  # how SentencePiece writes a space
_MAX_LENGTH = 1000  # of a token in characters: finding its merges takes quadratic time
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_THEN = "  "  # between patterns that split a text one after the other

# llama.cpp's names for pre-tokenizers that look up whole pieces before they merge (`ignore_merges`), and for others.
_PRE_TOKENIZERS = r"""
llama-bpe dbrx (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
- qwen2 (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
tekken - [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
- gpt-2 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
- smollm \p{N}  's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
- deepseek-v3 \p{N}{1,3}  [一-龥぀-ゟ゠-ヿ]+  [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
"""  # noqa: E501
_NAMES = {
    pattern: (whole, merging)
    for whole, merging, pattern in (line.split(" ", 2) for line in _PRE_TOKENIZERS.strip().splitlines())
}
_LINE_ENDS = {"\r": r"\r", "\n": r"\n"}  # which some tokenizers do not escape


class Unsupported(Exception):
    """What llama.cpp has no counterpart for."""

    def __init__(self, what: str, value: Any) -> None:
        super().__init__(what)
        self.what = what
        self.value = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Token(NamedTuple):
    """A token as in a GGUF file, where type 1 is a normal one."""

    text: str
    type: int = 1
    score: float = 0.0


class Bpe(NamedTuple):
    """Ids of tokens, those that merges make, ranks of merges, and whether a whole piece is looked up before any."""

    ids: Mapping[str, int]
    learned: Set[str]
    ranks: Mapping[tuple[str, str], int]
    whole_pieces: bool


def steps(tokenizer: JsonObject, part: str) -> list[JsonObject]:
    """The steps of a part, which is null, one step or a sequence of them."""
    found = []
    pending = deque([tokenizer.get(part)])
    while pending:
        step = pending.popleft()
        if step and step["type"] == "Sequence":
            [inner] = (value for value in step.values() if isinstance(value, list))
            pending.extendleft(reversed(inner))
        elif step:
            found.append(step)
    return found


def read_bpe(tokenizer: JsonObject) -> Bpe:
    model = tokenizer["model"]
    kind = model.get("type") or "BPE"
    if kind != "BPE":
        raise Unsupported("tokenizers of the type", kind)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise Unsupported(key, model[key])
    ids = model["vocab"]
    if len({*ids.values()}) < len(ids):
        raise ValueError("two tokens have the same id")
    ranks: dict[tuple[str, str], int] = {}
    for merge in model.get("merges") or ():
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if left + right not in ids:
            raise ValueError(f"the merge {merge} makes no token")
        ranks.setdefault((left, right), len(ranks))
    if not ranks:  # of which llama.cpp can load nothing
        raise ValueError("its tokenizer.json has no merges")
    added = {token["content"] for token in tokenizer.get("added_tokens", [])}
    return Bpe(ids, ids.keys() - added, ranks, model.get("ignore_merges") is True)


def pre_tokenizer_name(tokenizer: JsonObject, bpe: Bpe) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE."""
    for step in steps(tokenizer, "normalizer"):
        if step["type"] != "NFC":  # llama.cpp takes a text as it is, which is nearly always NFC
            raise Unsupported("the normalizer", step)
    patterns = _THEN.join(filter(None, map(_pattern, steps(tokenizer, "pre_tokenizer"))))
    names = _NAMES.get(patterns)
    if names is None:
        raise Unsupported("the pre-tokenizer", patterns or "(none)")
    name, other = names if bpe.whole_pieces else reversed(names)
    if name != "-":
        return name
    # ignore_merges makes no difference if merges can make every token
    for text in bpe.learned:
        if len(_merged(text, bpe.ranks)) > 1:
            raise Unsupported(f"this ignore_merges with the pre-tokenizer {other}: no merges make", text)
    return other


def merge_scores(bpe: Bpe) -> Mapping[str, float]:
    """Token scores that make llama.cpp merge in the order of the ranks, as in a SentencePiece model.

    llama.cpp joins neighbors whenever they form a token, the highest score first: the lower the rank of the first merge
    that makes a token, the higher its score. A token whose two parts no merge joins is unsupported: llama.cpp would
    join them.
    """
    scores = dict[str, float]()
    for (left, right), rank in bpe.ranks.items():
        scores.setdefault(left + right, -float(rank))
    for text in bpe.learned - scores.keys():
        if len(_merged(text, bpe.ranks)) == 2:
            raise Unsupported("a token that no merge makes from its two parts:", text)
    return scores


def _merged(text: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The parts of a text after all merges: each joins the first pair of the lowest rank."""
    if len(text) > _MAX_LENGTH:
        raise Unsupported(f"a token of more than {_MAX_LENGTH:,} characters:", truncate(text, 60))
    parts = list(text)
    while possible := [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]:
        _, at = min(possible)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def has_space_prefix(tokenizer: JsonObject) -> bool:
    """Whether a tokenizer of SentencePiece's kind puts a space before a text."""
    escapes = prefix = False
    for step in (*steps(tokenizer, "normalizer"), *steps(tokenizer, "pre_tokenizer")):
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                escapes = True
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}:
                escapes = True
                prefix = scheme != "never"
            case {"type": "Replace", "pattern": {"Regex": r"\A▁"}, "content": "▁▁"}:
                pass  # doubles a first space, as llama.cpp does; Metaspace alone does not
            case {"type": "Split", "pattern": {"String": " "}} if escapes:
                pass  # no space is left
            case _:
                raise Unsupported("the normalizer or pre-tokenizer", step)
    if not escapes:
        raise Unsupported("the pre-tokenizer", None)
    return prefix


def _pattern(step: JsonObject) -> str:
    """The pattern that a step splits a text with, or its JSON."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return _GPT2 if step.get("use_regex", True) else ""
        case {"type": "Digits", "individual_digits": True}:
            return r"\p{N}"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False} | {
            "type": "Split",
            "pattern": {"Regex": str(pattern)},
            "behavior": "Removed",
            "invert": True,
        }:
            for char, escaped in _LINE_ENDS.items():
                pattern = pattern.replace(char, escaped)
            return pattern
    return json.dumps(step)
