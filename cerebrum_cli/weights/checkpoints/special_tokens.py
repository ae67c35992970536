"""Special tokens of a checkpoint: BOS, EOS and the like, ends of a turn, and what is added to a text. Pure.

Damaged files raise ValueError, LookupError, TypeError or AttributeError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.text import truncate
from cerebrum_cli.gguf.contents import Value
from cerebrum_cli.weights.checkpoints.bpe import Unsupported, steps

_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # here, and in GGUF
_ADDITIONAL_ENDS = ("eot", "eom")  # names in GGUF
# Tokens that end a generation in llama.cpp, whatever the metadata.
_KNOWN_ENDS = """
<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT>
_<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[
"""


def special_tokens(
    ids: Mapping[str, int], size: int, settings: JsonObject, tokenizer: JsonObject, configs: Sequence[JsonObject]
) -> dict[str, Value]:
    """The metadata, from tokenizer_config.json, tokenizer.json, generation_config.json and config.json."""
    stated = {name: _stated(name, ids, size, settings, configs) for name in _NAMES}
    tokens = {name: numbers[0] for name, numbers in stated.items() if numbers}
    adds = {"bos": settings.get("add_bos_token") is not False, "eos": settings.get("add_eos_token") is True}
    if tokenizer:  # transformers ignores these settings then
        added = _template_tokens(tokenizer)
        adds = {name: name in added for name in adds}
        for name, text in added.items():
            if tokens.setdefault(name, ids[text]) != ids[text]:
                raise _another_token(name, text)
    values = {f"{_NAMES[name]}_token_id": Value("UINT32", number) for name, number in tokens.items()}
    for name, is_added in adds.items():
        values[f"add_{name}_token"] = Value("BOOL", is_added and name in tokens)
    known = {tokens.get("eos"), *(ids.get(text) for text in _KNOWN_ENDS.split())}
    for name, number in _additional_ends(end for end in stated["eos"] if end not in known).items():
        values[f"{name}_token_id"] = Value("UINT32", number)
    return values


def _stated(
    name: str, ids: Mapping[str, int], size: int, settings: JsonObject, configs: Sequence[JsonObject]
) -> Sequence[int]:
    """Ids of a special token that are in the vocabulary, in order of precedence."""
    text = settings.get(f"{name}_token")
    if isinstance(text, dict):
        text = text["content"]
    numbers = [ids.get(text or "")]
    for config in configs:
        key = f"{name}_token_id"
        number = config.get(key)
        if number is not None:
            numbers += [_token_id(key, value) for value in (number if isinstance(number, list) else [number])]
            break
    return [number for number in numbers if number is not None and 0 <= number < size]


def _token_id(key: str, value: object) -> int:
    """A token id, which some configurations state as a string of digits."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value)
    if type(value) is not int:
        raise ValueError(f"{key} {truncate(ascii(value), 60)} is not a token id")
    return value


def _additional_ends(ends: Iterable[int]) -> dict[str, int]:
    """GGUF names for end-of-turn tokens that llama.cpp does not know. Raises Unsupported for more than two."""
    additional = list(dict.fromkeys(ends))
    if len(additional) > len(_ADDITIONAL_ENDS):
        raise Unsupported("more than two additional end-of-turn tokens:", additional)
    return dict(zip(_ADDITIONAL_ENDS, additional, strict=False))


def _template_tokens(tokenizer: JsonObject) -> dict[str, str]:
    """The tokens that the post-processor puts around a text: "bos" in front of it, "eos" behind."""
    templates = [step for step in steps(tokenizer, "post_processor") if step["type"] != "ByteLevel"]
    if [template["type"] for template in templates] not in ([], ["TemplateProcessing"]):
        raise Unsupported("the post-processor", tokenizer["post_processor"])
    tokens = dict[str, str]()
    for template in templates:
        place = "bos"
        for piece in template["single"]:
            if "Sequence" in piece:
                place = "eos"
                continue
            for text in template["special_tokens"][piece["SpecialToken"]["id"]]["tokens"]:
                if place in tokens:
                    raise _another_token(place, text)
                tokens[place] = text
    return tokens


def _another_token(name: str, text: str) -> Unsupported:
    return Unsupported(f"a post-processor that adds another token than {name}_token:", text)
