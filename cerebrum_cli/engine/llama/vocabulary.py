"""Tokenize and detokenize, so that only a prompt format's own markup becomes special tokens.

Trusted text is split at the vocabulary's control tokens. The text between them is joined with the untrusted text beside
it and tokenized as plain characters, as the model saw it in training. Even then llama.cpp matches tokens of type
USER_DEFINED, so untrusted text is also split inside those, except for white space, digits and HTML tags, which open no
turn. Text that continues after such a split, or after a reply's tokens, must not get the leading space that
SentencePiece adds at the start: it is tokenized after an anchor, whose tokens are dropped.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache, cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.conversation import PromptPart, Text, Tokens
from cerebrum_cli.core.errors import UnknownToken
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.context import model_metadata

if TYPE_CHECKING:
    from llguidance import LLTokenizer

CONTROL = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
USER_DEFINED = llama.LLAMA_TOKEN_ATTR_USER_DEFINED
SPACE_PREFIX_TYPES = (llama.LLAMA_VOCAB_TYPE_SPM, llama.LLAMA_VOCAB_TYPE_UGM)
LOSSLESS_TYPES = (llama.LLAMA_VOCAB_TYPE_SPM, llama.LLAMA_VOCAB_TYPE_BPE)  # others drop white space, for example
MAX_PIECE = 256  # bytes; few tokens are longer
REPEATED = 64  # texts of a prompt format to remember
# Some pre-tokenizers of llama.cpp match long words with std::regex, which recurses for each character of a word and
# crashes when the stack is full (llama.cpp#15594). A text with a run of MAX_RUN characters or more is cut.
LONG_RUN = re.compile(r"(?<!\s)\s{2000,}|(?<!\S)\S{2000,}")  # looked for from its beginning only, in linear time
MAX_RUN = 1_000_000
STACK_PER_CHARACTER = 512  # bytes; about 310 are used
STACK_SIZE = threading.Lock()  # the size of new threads' stacks is a setting of the process
ANCHORS = ("\n", "a", "0", ".")
BLANK = re.compile(r"\s+|\d+")
DEFAULTS = {"bos": "<s>", "eos": "</s>"}  # which SentencePiece has where a file has no valid id
# Gemma's user-defined tags. Any other token might be the markup of some model, as <s> is in most.
HTML = re.compile(r"</?(?:table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|sub|sup|code)>")


class LlamaVocabulary:
    def __init__(self, model: Any) -> None:
        self._vocab = llama.llama_model_get_vocab(model)
        self.piece = cache(self._read_piece)
        self.is_eog = cache(self._is_eog)
        self._markup = cache(self._find_markup)
        self._split = lru_cache(REPEATED)(self._split_controls)
        self._space_prefix = llama.llama_vocab_type(self._vocab) in SPACE_PREFIX_TYPES
        self._template = (llama.llama_model_chat_template(model, None) or b"").decode(errors="replace")
        self._has_regex = llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_BPE
        self.size: int = llama.llama_vocab_n_tokens(self._vocab)
        self._known: dict[tuple[tuple[Text, ...], bool], list[int]] = {}  # plain text of the last prompt
        self._special = {name: self._special_token(model, name) for name in DEFAULTS}

    def tokenize(self, parts: Iterable[PromptPart]) -> TokenIds:
        """Tokenize a prompt, and prepend BOS if the vocabulary requires it and the prompt does not start with it.

        Raises UnknownToken if the prompt contains tokens of another vocabulary.
        """
        items = []  # with trusted text split at control tokens
        for part in parts:
            if isinstance(part, Text) and part.trusted:
                items += self._split(part.value)
            else:
                items.append(part)
        ids = []
        run: list[Text] = []  # without special tokens
        continues = False
        known, self._known = self._known, {}
        for item in (*items, Tokens(())):
            if isinstance(item, Text):
                run.append(item)
                continue
            key = tuple(run), continues
            self._known[key] = known[key] if key in known else self._tokenize_plain(run, continues)
            ids += self._known[key]
            run.clear()
            ids += self._checked_ids(item.ids)
            continues = bool(ids) and not llama.llama_vocab_get_attr(self._vocab, ids[-1]) & CONTROL
        bos = self._special["bos"]
        if bos is not None and llama.llama_vocab_get_add_bos(self._vocab) and ids[:1] != [bos]:
            ids.insert(0, bos)
        return tuple(ids)

    @cached_property
    def longest_token(self) -> int:
        if llama.llama_vocab_type(self._vocab) not in LOSSLESS_TYPES:
            return sys.maxsize
        return max(len(self._read_piece(token, special=True)) for token in range(self.size))

    @cached_property
    def guidance_tokenizer(self) -> LLTokenizer:
        """This vocabulary for llguidance, where 0xFF begins a token that is not text.

        It takes most of a second to build with 150,000 tokens.
        """
        from llguidance import LLTokenizer

        buffer = ctypes.create_string_buffer(MAX_PIECE)
        tokens: list[bytes] = []
        ends = [llama.llama_vocab_eos(self._vocab)]
        for token in range(self.size):
            length = llama.llama_token_to_piece(self._vocab, token, buffer, MAX_PIECE, 0, True)
            piece = buffer.raw[:length] if length >= 0 else self._read_piece(token, special=True)
            if llama.llama_vocab_get_attr(self._vocab, token) & CONTROL:
                piece = b"\xff" + piece
                if self._is_eog(token):
                    ends.append(token)
            tokens.append(piece)
        tokenize = ctypes.cast(llama.llama_tokenize, ctypes.c_void_p).value
        return LLTokenizer.from_llamacpp(
            tokens=tokens, vocab_ptr=self._vocab, tokenize_fptr=tokenize, eos_token=ends, slices=[]
        )

    def special_token_ids(self, texts: Iterable[str]) -> frozenset[int]:
        return frozenset(
            token
            for text in texts
            for token in self._tokenize_raw(text, parse_special=True)
            if (llama.llama_vocab_get_attr(self._vocab, token) & CONTROL and self._spelling(token) in text)
            or self._markup(token)
        )

    def special_token_text(self, name: str) -> str:
        token = self._special[name]
        return "" if token is None else self._spelling(token)

    def _special_token(self, model: Any, name: str) -> int | None:
        """The token whose id the file has; None without a valid one.

        llama.cpp has a default then, which in most vocabularies is any token, such as a comma (`llama-vocab.cpp` of
        llama-cpp-python 0.3.36).
        """
        token: int = getattr(llama, f"llama_vocab_{name}")(self._vocab)
        is_given = model_metadata(model, f"tokenizer.ggml.{name}_token_id") == str(token)
        if is_given or (token >= 0 and self._spelling(token) == DEFAULTS[name]):
            return token
        return None

    def _is_eog(self, token: int) -> bool:
        if self._special["eos"] is None and token == llama.llama_vocab_eos(self._vocab):
            return False
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def _split_controls(self, text: str) -> list[PromptPart]:
        """Split trusted text at its first and last control token; what is between them is tokenized."""
        ids: list[int] = []
        first = ""
        at = 0
        for token in self._tokenize_raw(text, parse_special=True):
            attribute = llama.llama_vocab_get_attr(self._vocab, token)
            if not attribute & CONTROL:
                continue
            spelling = self._spelling(token)
            start = text.find(spelling, at)
            if start < 0:  # <unk> for a byte that no token covers: not spelled out
                continue
            before = text[at:start]
            before = before.rstrip() if attribute & llama.LLAMA_TOKEN_ATTR_LSTRIP else before
            if not ids:
                first = before
            elif before:
                ids += self._tokenize_segment(before, continues=False)
            ids.append(token)
            at = start + len(spelling)
            if attribute & llama.LLAMA_TOKEN_ATTR_RSTRIP:
                while text[at : at + 1].isspace():
                    at += 1
        return [Text(first, True), Tokens(tuple(ids)), Text(text[at:], True)] if ids else [Text(text, True)]

    def _tokenize_plain(self, run: list[Text], continues: bool) -> list[int]:
        """Tokenize joined plain text so that no untrusted character is part of a user-defined token."""
        text = ""
        untrusted = []
        for plain in run:
            if not plain.trusted:
                untrusted.append((len(text), len(text) + len(plain.value)))
            text += plain.value
        splits: set[int] = set()
        while text:
            ids = [
                token
                for start, end in pairwise([0, *sorted(splits), len(text)])
                for token in self._tokenize_segment(text[start:end], continues or start > 0)
            ]
            known = len(splits)
            for mark in filter(None, set(map(self._markup, ids))):
                at = text.find(mark)
                while at >= 0:
                    if any(start < at + len(mark) and at < end for start, end in untrusted):
                        splits.add(at + 1)
                    at = text.find(mark, at + 1)
            if len(splits) == known:
                return ids
        return []

    def _tokenize_segment(self, text: str, continues: bool) -> list[int]:
        if continues and self._space_prefix:
            for anchor in ANCHORS:
                head = self._tokenize_raw(anchor)
                ids = self._tokenize_raw(anchor + text)
                if ids[: len(head)] == head:
                    return ids[len(head) :]
        return self._tokenize_raw(text)

    def _tokenize_raw(self, text: str, parse_special: bool = False) -> list[int]:
        longest = max(map(len, LONG_RUN.findall(text)), default=0) if self._has_regex else 0
        if not longest:
            return self._tokenize_at_once(text, parse_special)
        pieces = [text] if longest < MAX_RUN else [text[at : at + MAX_RUN] for at in range(0, len(text), MAX_RUN)]
        stack = min(longest, MAX_RUN) * STACK_PER_CHARACTER
        return [token for piece in pieces for token in _with_stack(stack, self._tokenize_at_once, piece, parse_special)]

    def _tokenize_at_once(self, text: str, parse_special: bool) -> list[int]:
        data = text.encode(errors="surrogatepass")
        capacity = len(data) + 8
        while True:
            tokens = (llama.llama_token * (1 << capacity.bit_length()))()  # of few sizes, whose types ctypes reuses
            count = llama.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), False, parse_special)
            if count >= 0:
                return list(tokens[:count])
            capacity = -count

    def _checked_ids(self, ids: TokenIds) -> TokenIds:
        """Check that all ids are in the vocabulary: for others llama.cpp aborts the process."""
        for token in ids:
            if not 0 <= token < self.size:
                raise UnknownToken(
                    f"token {token} is not in this model's vocabulary of {self.size} tokens",
                    "the tokens come from another model; switch back to it, or start over",
                )
        return ids

    def _find_markup(self, token: int) -> str:
        """A token that is markup, which plain text can match; empty for others, and HTML outside the chat template."""
        spelling = self._spelling(token) if llama.llama_vocab_get_attr(self._vocab, token) & USER_DEFINED else ""
        is_plain = len(spelling) < 2 or BLANK.fullmatch(spelling)
        return "" if is_plain or (HTML.fullmatch(spelling) and spelling not in self._template) else spelling

    def _spelling(self, token: int) -> str:
        return self.piece(token, special=True).decode(errors="replace")

    def _read_piece(self, token: int, special: bool = False) -> bytes:
        """Bytes of a token; empty for a control token unless `special`. UnknownToken if the id is out of range."""
        self._checked_ids((token,))
        capacity = 256
        while True:
            buffer = ctypes.create_string_buffer(capacity)  # one for each call, for thread safety
            count = int(llama.llama_token_to_piece(self._vocab, token, buffer, capacity, 0, special))
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count


def _with_stack(size: int, call: Callable[..., list[int]], *arguments: object) -> list[int]:
    """Call a function in a thread whose stack has `size` bytes, at least 16 MB."""
    with STACK_SIZE:
        from concurrent.futures import ThreadPoolExecutor

        previous = threading.stack_size(max(size, 2**24))
        try:
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(call, *arguments).result()
        finally:
            threading.stack_size(previous)
