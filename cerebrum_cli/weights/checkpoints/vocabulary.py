"""The vocabulary of a checkpoint: the files of its tokenizer as the `tokenizer.*` metadata of a GGUF file.

A tokenizer that llama.cpp cannot reproduce is rejected, so that token ids match the checkpoint's tokenizer. Compare
conversion/base.py and gguf-py/gguf/vocab.py in llama.cpp 0c1e57098.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from operator import index
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.files import reading_model
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.gguf.contents import VOCABULARY, Value, Values, quoted
from cerebrum_cli.weights.checkpoints.bpe import (
    SPACE,
    Token,
    Unsupported,
    has_space_prefix,
    merge_scores,
    pre_tokenizer_name,
    read_bpe,
    steps,
)
from cerebrum_cli.weights.checkpoints.configuration import USE_GGUF
from cerebrum_cli.weights.checkpoints.safetensors import read_json
from cerebrum_cli.weights.checkpoints.sentencepiece import parse_sentencepiece
from cerebrum_cli.weights.checkpoints.special_tokens import special_tokens

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6  # token types of GGUF
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10_000.0
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
# Added tokens that are control tokens, though not all tokenizers say so.
_CONTROL_TEXT = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@]", re.DOTALL)
# Tokens that may have no row: of Gemma 3's models with vision, and those that only pad texts in training.
_NO_ROW = ("<image_soft_token>", "[PAD]", "<pad>")
_USE_ORIGINAL = f"take its tokenizer files from the original model, or {USE_GGUF}"

Tokens = dict[int, Token]
Vocabulary = tuple[Tokens, dict[str, Value]]


class TokenizerFiles(NamedTuple):
    """The folder of a checkpoint, and the content of JSON files about its tokenizer; empty if there is none."""

    folder: Path
    tokenizer: JsonObject
    settings: JsonObject
    generation: JsonObject


def tokenizer_files(folder: Path) -> TokenizerFiles:
    names = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
    return TokenizerFiles(folder, *(read_json(folder / name) for name in names))


def read_vocabulary(files: TokenizerFiles, config: JsonObject, size: int) -> Values:
    """Read the vocabulary of a model with `size` embedding rows; those without a token get a padding token.

    `config` is its config.json. Raises ModelFileError for missing or damaged files, and for a tokenizer that llama.cpp
    cannot follow.
    """
    try:
        return _read(files, config, size)
    except Unsupported as error:
        problem = f"llama.cpp does not support {error.what} {quoted(error.value)}"
        raise ModelFileError(files.folder, problem, USE_GGUF) from error
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError, struct.error) as error:
        lacks = "it lacks " if isinstance(error, KeyError) else ""
        problem = f"its tokenizer is damaged: {quoted(f'{lacks}{error}')}"
        raise ModelFileError(files.folder, problem, _USE_ORIGINAL) from error


def _read(files: TokenizerFiles, config: JsonObject, size: int) -> Values:
    folder, tokenizer, settings, generation = files
    if any(step["type"] == "ByteLevel" for step in steps(tokenizer, "pre_tokenizer")):
        tokens, values = _byte_level(tokenizer)
        tokens |= _added_tokens(files)
    else:
        tokens, values = _scored_tokens(files)
    for number in range(size):
        tokens.setdefault(number, Token(f"[PAD{number}]", _UNUSED, _UNUSED_SCORE))
    ids = _ids(folder, tokens, size)
    values |= special_tokens(ids, size, settings, tokenizer, (generation, config))
    values |= _rows([tokens[number] for number in range(size)])
    if "merges" in values:
        del values["scores"]
    if "eos_token_id" not in values:
        raise ModelFileError(folder, "has no EOS token", "set eos_token in its tokenizer_config.json")
    metadata = {VOCABULARY + key: value for key, value in values.items()}
    template = _chat_template(files)
    if template:
        metadata["tokenizer.chat_template"] = Value("STRING", template)
    return metadata


def _rows(tokens: Sequence[Token]) -> dict[str, Value]:
    return {
        "tokens": Value("ARRAY", tuple(token.text.encode() for token in tokens), "STRING"),
        "token_type": Value("ARRAY", tuple(token.type for token in tokens), "INT32"),
        "scores": Value("ARRAY", tuple(token.score for token in tokens), "FLOAT32"),
    }


def _byte_level(tokenizer: JsonObject) -> Vocabulary:
    bpe = read_bpe(tokenizer)
    merges = tuple(f"{left} {right}".encode() for left, right in bpe.ranks if " " not in left + right)  # never applied
    values = {
        "model": Value("STRING", "gpt2"),
        "pre": Value("STRING", pre_tokenizer_name(tokenizer, bpe)),
        "merges": Value("ARRAY", merges, "STRING"),
    }
    return {number: Token(text) for text, number in bpe.ids.items()}, values


def _scored_tokens(files: TokenizerFiles) -> Vocabulary:
    """Tokens of SentencePiece's kind, with scores from tokenizer.model, or from the merges of tokenizer.json."""
    folder, tokenizer = files.folder, files.tokenizer
    model = folder / "tokenizer.model"
    pieces: Tokens = {}
    if model.is_file():
        pieces, space_prefix = _pieces(model, files.settings)
    elif not tokenizer:
        hint = "save its tokenizer with transformers' save_pretrained"
        raise ModelFileError(folder, "has neither tokenizer.json nor tokenizer.model", hint)
    learned = {token.text: number for number, token in pieces.items() if token.type == _NORMAL}
    if tokenizer and not (learned and learned.items() <= tokenizer["model"]["vocab"].items()):
        pieces = _byte_fallback(tokenizer)  # tokenizer.model is missing, or is another model's
        space_prefix = has_space_prefix(tokenizer)
    tokens = pieces | _added_tokens(files)
    for number, token in tokens.items():
        if token.type == _USER_DEFINED:  # llama.cpp looks for these before it escapes spaces
            tokens[number] = token._replace(text=token.text.replace(SPACE, " "))
    missing = {*_BYTE_TOKENS}.difference(token.text for token in tokens.values())
    if missing:
        raise Unsupported("a vocabulary without byte tokens, such as", min(missing))
    values = {
        "model": Value("STRING", "llama"),
        "pre": Value("STRING", "default"),
        "add_space_prefix": Value("BOOL", space_prefix),
    }
    return tokens, values


def _pieces(path: Path, settings: JsonObject) -> tuple[Tokens, bool]:
    with reading_model(path):
        pieces, space_prefix = parse_sentencepiece(path.read_bytes())
    stated = settings.get("add_prefix_space")
    return dict(enumerate(pieces)), stated if isinstance(stated, bool) else space_prefix


def _byte_fallback(tokenizer: JsonObject) -> Tokens:
    bpe = read_bpe(tokenizer)
    scores = merge_scores(bpe)
    tokens = {number: Token(text, score=scores.get(text, 0.0)) for text, number in bpe.ids.items()}
    for text in bpe.ids.keys() & _BYTE_TOKENS:
        tokens[bpe.ids[text]] = Token(text, _BYTE)
    return tokens


def _added_tokens(files: TokenizerFiles) -> Tokens:
    """Added tokens, which are matched before all others; later files override earlier ones."""
    found = [(number, text, False) for text, number in read_json(files.folder / "added_tokens.json").items()]
    for key, token in files.settings.get("added_tokens_decoder", {}).items():
        found.append((int(key), token["content"], token.get("special")))
    for token in files.tokenizer.get("added_tokens", []):
        found.append((token["id"], token["content"], token.get("special")))
    tokens = {}
    for number, text, is_special in found:
        is_control = is_special or _CONTROL_TEXT.fullmatch(text)
        tokens[number] = Token(text, _CONTROL if is_control else _USER_DEFINED, _ADDED_SCORE)
    return tokens


def _ids(folder: Path, tokens: Tokens, size: int) -> Mapping[str, int]:
    """Token ids by text. Raises ModelFileError for duplicate texts, which crash llama.cpp, and ids without a row."""
    ids: dict[str, int] = {}
    for number, token in tokens.items():
        name = f"its token {number}, {quoted(token.text)},"
        if token.text in ids:
            hint = "remove one of them from the tokenizer"
            raise ModelFileError(folder, f"{name} is also token {ids[token.text]}", hint)
        if not 0 <= index(number) < size and token.text not in _NO_ROW:
            hint = "resize the embedding to the tokenizer, or remove the token"
            raise ModelFileError(folder, f"{name} has no row in the embedding of {size:,}", hint)
        ids[token.text] = number
    return ids


def _chat_template(files: TokenizerFiles) -> str:
    """The chat template, or the default of several; empty without one."""
    path = files.folder / "chat_template.jinja"
    if path.is_file():
        with reading_model(path):
            return path.read_text("utf-8")
    template = files.settings.get("chat_template")
    if not template:
        template = read_json(files.folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {item["name"]: item["template"] for item in template}
        if "default" not in named:
            raise Unsupported("chat templates without a default:", [*named])
        template = named["default"]
    if not isinstance(template, str | None):
        raise TypeError(f"chat_template is {template}")
    return template or ""
