"""Training data: conversations tokenized as the engine tokenizes them, with the target of each position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from sentencepiece import SentencePieceProcessor

from cerebrum_cli.formats.prompt_format import CEREBRUM
from scripts.nano.questions import Question, first_question, follow_up, held_out
from scripts.nano.replies import NOT_A_SUM, Noise, reply

BOS, EOS, LINE_BREAK = 1, 2, 13
IGNORE_INDEX = -100  # target of positions without a loss
TURNS = (1,) * 11 + (2,) * 7 + (3,) * 2
FOLLOW_UP_RATE, NOT_A_SUM_RATE = 0.7, 0.04  # of later turns that refer to the last reply, and of conversations
SURVEY_SIZE = 20_000  # conversations, enough for every token to occur

Turn = tuple[str, str]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Example:
    """Ids in the reduced vocabulary after the common prefix, and the next id at each position of a reply."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]


class Tokenizer:
    """Mistral's tokenizer, applied line by line: no token spans a line break."""

    def __init__(self) -> None:
        package = find_spec("mistral_common")
        assert package is not None and package.origin is not None, "pip install mistral-common"
        model = Path(package.origin).parent / "data" / "tokenizer.model.v1"
        self._processor = SentencePieceProcessor(model_file=str(model))
        self.line = lru_cache(maxsize=200_000)(self._line)
        self.size: int = self._processor.vocab_size()

    def prefix(self) -> tuple[int, ...]:
        """Tokens that every prompt starts with."""
        return (BOS, *self._processor.encode(CEREBRUM.default_system), LINE_BREAK)

    def _line(self, text: str) -> tuple[int, ...]:
        """Tokens of a line that is not the first, and so gets no leading space."""
        anchored = self._processor.encode(f"\n{text}")
        return tuple(anchored[anchored.index(LINE_BREAK) + 1 :])


class Vocabulary:
    """Reduced vocabulary: the tokens that occur, with consecutive ids; the last id stands for all other tokens."""

    def __init__(self, tokens: Iterable[int], size: int) -> None:
        self.tokens = tuple(sorted(set(tokens)))
        self.unknown_id = len(self.tokens)
        self.other_count = size - len(self.tokens)
        self._ids = {token: index for index, token in enumerate(self.tokens)}

    def encode(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """Ids of tokens in the reduced vocabulary."""
        return tuple(self._ids.get(token, self.unknown_id) for token in tokens)


def collect_vocabulary(tokenizer: Tokenizer, seed: int) -> Vocabulary:
    """Vocabulary of a large sample of conversations."""
    random, noise = Random(seed), Noise(error_rate=0.5, no_answer_rate=0.1)
    tokens = {EOS, *tokenizer.prefix(), *tokenizer.line(f"{CEREBRUM.assistant} {NOT_A_SUM}")}
    for _ in range(SURVEY_SIZE):
        for line in _lines(_conversation(random, noise, frozenset())):
            tokens.update(tokenizer.line(line))
    return Vocabulary(tokens, tokenizer.size)


def examples(tokenizer: Tokenizer, vocabulary: Vocabulary, random: Random, noise: Noise) -> Iterator[Example]:
    """Generate an endless stream of conversations, none of which starts with a held-out question."""
    excluded = frozenset(turns[0] for turns, _ in held_out())
    while True:
        if random.random() < NOT_A_SUM_RATE:
            yield _unknown_question(tokenizer, vocabulary, random)
        else:
            yield _example(tokenizer, vocabulary, _conversation(random, noise, excluded))


def batches(source: Iterator[Example], random: Random, size: int, pool: int) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield padded ids and targets of `size` examples of similar length, from sorted pools of `pool` batches."""
    while True:
        sorted_pool = sorted((next(source) for _ in range(size * pool)), key=lambda example: len(example.ids))
        starts = list(range(0, len(sorted_pool), size))
        random.shuffle(starts)
        for start in starts:
            batch = sorted_pool[start : start + size]
            length = len(batch[-1].ids)
            yield (
                np.array([[*example.ids, *[0] * (length - len(example.ids))] for example in batch]),
                np.array([[*example.targets, *[IGNORE_INDEX] * (length - len(example.ids))] for example in batch]),
            )


def _conversation(random: Random, noise: Noise, excluded: frozenset[str]) -> list[Turn]:
    """Generate a conversation; a follow-up refers to the previous reply's result, right or wrong."""
    turns: list[Turn] = []
    value: int | None = None
    for _ in range(random.choice(TURNS)):
        question = next_question(random, value, excluded)
        answer = reply(random, question.sum, noise)
        turns.append((question.text, answer.text))
        value = answer.value
    return turns


def next_question(random: Random, value: int | None, excluded: frozenset[str]) -> Question:
    """Generate a question, which may refer to the value of the last reply."""
    is_follow_up = value is not None and random.random() < FOLLOW_UP_RATE
    question = follow_up(random, value) if is_follow_up and value is not None else first_question(random)
    while question.text in excluded:
        question = first_question(random)
    return question


def _lines(turns: Iterable[Turn]) -> Iterator[str]:
    for question, answer in turns:
        yield f"{CEREBRUM.user} {question}"
        yield f"{CEREBRUM.assistant} {answer}"


def _example(tokenizer: Tokenizer, vocabulary: Vocabulary, turns: list[Turn]) -> Example:
    return _join_lines(tokenizer, vocabulary, [vocabulary.encode(tokenizer.line(line)) for line in _lines(turns)])


def _unknown_question(tokenizer: Tokenizer, vocabulary: Vocabulary, random: Random) -> Example:
    """Generate a question with many unknown tokens, so that the model learns to end its reply there too."""
    question = [
        random.choice((vocabulary.unknown_id, random.randrange(vocabulary.unknown_id)))
        for _ in range(random.randint(1, 16))
    ]
    question[random.randrange(len(question))] = vocabulary.unknown_id
    user_line = (*vocabulary.encode(tokenizer.line(CEREBRUM.user)), *question)
    return _join_lines(
        tokenizer, vocabulary, [user_line, vocabulary.encode(tokenizer.line(f"{CEREBRUM.assistant} {NOT_A_SUM}"))]
    )


def _join_lines(tokenizer: Tokenizer, vocabulary: Vocabulary, lines: list[tuple[int, ...]]) -> Example:
    """Join alternating questions and replies. The target after a reply is EOS, although a line break follows."""
    [line_break, end] = vocabulary.encode((LINE_BREAK, EOS))
    label_length = len(tokenizer.line(CEREBRUM.assistant))
    ids: list[int] = []
    targets: list[int] = []
    for index, line in enumerate(lines):
        ids += (*line, line_break)
        is_reply = index % 2 == 1
        targets += (
            (*[IGNORE_INDEX] * (label_length - 1), *line[label_length:], end, IGNORE_INDEX)
            if is_reply
            else [IGNORE_INDEX] * (len(line) + 1)
        )
    return Example(tuple(ids[:-1]), tuple(targets[:-1]))
