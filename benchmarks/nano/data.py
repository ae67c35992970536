"""Conversations as the model reads them: the tokens the runtime would make of them, and what is to be said at each."""

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

from cerebrum_cli.formats.plain import CEREBRUM
from nano.questions import follow_up, held_out, opening
from nano.replies import NOT_A_SUM, Noise, reply

BOS, EOS, LINE_BREAK = 1, 2, 13
SILENT = -100  # no token is learned here
TURNS = (1,) * 11 + (2,) * 7 + (3,) * 2
FOLLOWS_UP, NO_SUM = 0.7, 0.04  # the shares of later turns that go on from the last, and of questions of other words
SURVEY = 20_000  # conversations after which every token there is has been seen

Turn = tuple[str, str]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Example:
    """What stands behind the preamble, in places of the `Words`, and the next word where the model speaks."""

    words: tuple[int, ...]
    targets: tuple[int, ...]


class Pieces:
    """Mistral's tokenizer, asked line by line: no token reaches over a line break."""

    def __init__(self) -> None:
        package = find_spec("mistral_common")
        assert package is not None and package.origin is not None, "pip install mistral-common"
        model = Path(package.origin).parent / "data" / "tokenizer.model.v1"
        self._processor = SentencePieceProcessor(model_file=str(model))
        self.line = lru_cache(maxsize=200_000)(self._line)
        self.size: int = self._processor.vocab_size()

    def preamble(self) -> tuple[int, ...]:
        """Return what every prompt begins with."""
        return (BOS, *self._processor.encode(CEREBRUM.default_system), LINE_BREAK)

    def _line(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a line that is not the first: it does not get the space of a beginning."""
        anchored = self._processor.encode(f"\n{text}")
        return tuple(anchored[anchored.index(LINE_BREAK) + 1 :])


class Words:
    """The tokens that occur, numbered without gaps; the last number stands for all the others."""

    def __init__(self, tokens: Iterable[int], size: int) -> None:
        self.tokens = tuple(sorted(set(tokens)))
        self.unknown = len(self.tokens)
        self.others = size - len(self.tokens)
        self._places = {token: place for place, token in enumerate(self.tokens)}

    def places(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """Return the numbers of tokens."""
        return tuple(self._places.get(token, self.unknown) for token in tokens)


def survey(pieces: Pieces, seed: int) -> Words:
    """Return the words of a large sample of conversations."""
    random, noise = Random(seed), Noise(slip=0.5, unsure=0.1)
    seen = {EOS, *pieces.preamble(), *pieces.line(f"{CEREBRUM.assistant} {NOT_A_SUM}")}
    for _ in range(SURVEY):
        for line in _lines(_conversation(random, noise, frozenset())):
            seen.update(pieces.line(line))
    return Words(seen, pieces.size)


def examples(pieces: Pieces, words: Words, random: Random, noise: Noise) -> Iterator[Example]:
    """Draw conversations for ever, none of which begins with a question that is held out."""
    excluded = frozenset(turns[0] for turns, _ in held_out())
    while True:
        if random.random() < NO_SUM:
            yield _no_sum(pieces, words, random)
        else:
            yield _example(pieces, words, _conversation(random, noise, excluded))


def batches(drawn: Iterator[Example], random: Random, size: int, pool: int) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield words and targets of examples that are about as long as each other: sorted in pools of so many batches."""
    while True:
        found = sorted((next(drawn) for _ in range(size * pool)), key=lambda example: len(example.words))
        starts = list(range(0, len(found), size))
        random.shuffle(starts)
        for start in starts:
            batch = found[start : start + size]
            width = len(batch[-1].words)
            yield (
                np.array([[*example.words, *[0] * (width - len(example.words))] for example in batch]),
                np.array([[*example.targets, *[SILENT] * (width - len(example.words))] for example in batch]),
            )


def _conversation(random: Random, noise: Noise, excluded: frozenset[str]) -> list[Turn]:
    """Draw a conversation: a follow-up goes on from what the reply before it came to, right or wrong."""
    turns: list[Turn] = []
    value: int | None = None
    for _ in range(random.choice(TURNS)):
        goes_on = value is not None and random.random() < FOLLOWS_UP
        asked = follow_up(random, value) if goes_on and value is not None else opening(random)
        while asked.text in excluded:
            asked = opening(random)
        said = reply(random, asked.sum, noise)
        turns.append((asked.text, said.text))
        value = said.value
    return turns


def _lines(turns: Iterable[Turn]) -> Iterator[str]:
    for asked, said in turns:
        yield f"{CEREBRUM.user} {asked}"
        yield f"{CEREBRUM.assistant} {said}"


def _example(pieces: Pieces, words: Words, turns: list[Turn]) -> Example:
    return _joined(pieces, words, [words.places(pieces.line(line)) for line in _lines(turns)])


def _no_sum(pieces: Pieces, words: Words, random: Random) -> Example:
    """Draw a question of which many words are unknown, so that the model comes to an end there too."""
    question = [random.choice((words.unknown, random.randrange(words.unknown))) for _ in range(random.randint(1, 16))]
    question[random.randrange(len(question))] = words.unknown
    asked = (*words.places(pieces.line(CEREBRUM.user)), *question)
    return _joined(pieces, words, [asked, words.places(pieces.line(f"{CEREBRUM.assistant} {NOT_A_SUM}"))])


def _joined(pieces: Pieces, words: Words, lines: list[tuple[int, ...]]) -> Example:
    """Join questions and replies by turns. A reply is learned with EOS behind it; what follows it is a line break."""
    [line_break, end] = words.places((LINE_BREAK, EOS))
    speaker = len(pieces.line(CEREBRUM.assistant))
    read: list[int] = []
    targets: list[int] = []
    for index, line in enumerate(lines):
        read += (*line, line_break)
        spoken = index % 2 == 1
        targets += (*[SILENT] * (speaker - 1), *line[speaker:], end, SILENT) if spoken else [SILENT] * (len(line) + 1)
    return Example(tuple(read[:-1]), tuple(targets[:-1]))
