"""The token trie of all texts to score, as its paths from the root to a leaf in lexicographic order. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cerebrum_cli.engine.scheduler import common_prefix
from cerebrum_cli.engine.scoring.request import ScoreRequest

Lookups = dict[int, dict[int, list[int]]]
"""Readers of probabilities: by number of evaluated tokens, and by the token after these."""


class Path(NamedTuple):
    """A leaf of the trie: the tokens from the root to it, of which the path before has the first `shared` in common.

    `lookups` are the probabilities read at the nodes that are not shared, as flat triples of integers: number of tokens
    evaluated, next token, reader. An array takes a tenth of the memory of objects.
    """

    tokens: array[int]
    shared: int
    lookups: array[int]

    def lookups_by_node(self) -> Lookups:
        """Readers of each probability."""
        found: Lookups = defaultdict(lambda: defaultdict(list))
        for at in range(0, len(self.lookups), 3):
            evaluated, token, reader = self.lookups[at : at + 3]
            found[evaluated][token].append(reader)
        return dict(found)


def build_paths(requests: Sequence[ScoreRequest]) -> tuple[Path, ...]:
    """Build the trie of contexts and continuations, without the last token of each.

    Readers number the continuations of all requests, in order. The paths depend on the set of requests alone, not on
    their order. Contexts may not be empty.
    """
    terms = [(request.context, continuation) for request in requests for continuation in request.continuations]
    paths: list[Path] = []
    starts: list[int] = []  # a node of the current path belongs to the first path that has it: the last of `owners`
    owners: list[int] = []  # whose start is less than the node's depth
    for leaf, shared, readers in _leaves(_evaluated_texts(terms)):
        while starts and starts[-1] >= shared:
            del starts[-1], owners[-1]
        starts.append(shared)
        owners.append(len(paths))
        paths.append(Path(leaf, shared, array("i")))
        for reader in readers:
            context, continuation = terms[reader]
            for evaluated, token in enumerate(continuation, len(context)):
                owner = owners[bisect_left(starts, evaluated) - 1]
                paths[owner].lookups.extend((evaluated, token, reader))
    return tuple(paths)


def node_count(paths: Sequence[Path]) -> int:
    """Number of nodes of the trie below its root."""
    return sum(len(path.tokens) - path.shared for path in paths)


def _evaluated_texts(terms: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[array[int], int]]:
    """The tokens to evaluate for each reader, in lexicographic order; nothing for an empty continuation."""
    texts = []
    for reader, (context, continuation) in enumerate(terms):
        if continuation:
            texts.append((array("i", [*context, *continuation[:-1]]), reader))
    return sorted(texts)


def _leaves(texts: Sequence[tuple[array[int], int]]) -> Iterator[tuple[array[int], int, list[int]]]:
    """Yield each text that no other extends, its common prefix with the one before, and the readers along it."""
    readers: list[int] = []
    shared = 0
    for index, (text, reader) in enumerate(texts):
        readers.append(reader)
        following = texts[index + 1][0] if index + 1 < len(texts) else array("i")
        common = common_prefix(text, following)
        if common < len(text):
            yield text, shared, readers
            readers, shared = [], common
