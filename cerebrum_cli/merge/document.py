"""Adapter to PyYAML: parse any text into plain values, or raise an error with the line and column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.merge.location import Location, truncate

if TYPE_CHECKING:
    from yaml.error import Mark
    from yaml.nodes import Node

_LEVELS, _VALUES = 20, 100_000  # with aliases expanded: far beyond any recipe, and still fast to check


class Document(NamedTuple):
    """A YAML document, and the keys of its top level whose values are used again by an alias."""

    content: object
    anchored_keys: frozenset[str]


def read_document(root: Location, text: str) -> Document:
    """Parse a text that holds one YAML document. Raises UsageError if it does not."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise root.error("empty file", "write a recipe: a merge_method, and slices or models")
        if not _is_bounded(node):
            raise root.error("too many levels or aliases", "use fewer levels and aliases")
        anchored_keys = _anchored_keys(node)  # first: construction merges the values of `<<` into others
        return Document(loader.construct_document(node), anchored_keys)
    except yaml.MarkedYAMLError as error:
        reason = " ".join(filter(None, [error.context, error.problem]))
        raise root.error(
            f"not valid YAML{_position(error.problem_mark)}: {truncate(reason, 200)}", "correct the syntax there"
        ) from error
    except yaml.reader.ReaderError as error:
        lines = text[: error.position].split("\n")
        at = f"line {len(lines)}, column {len(lines[-1]) + 1}"
        raise root.error(f"not valid YAML at {at}: {error.reason}", "remove the character there") from error
    except RecursionError as error:
        raise root.error("too many levels", "use fewer levels") from error
    # PyYAML does not translate the exceptions of int(), date() and re for invalid numbers, dates and tagged values.
    except (ValueError, LookupError, AttributeError, ArithmeticError, TypeError) as error:
        unfinished = list(loader.recursive_objects)
        at = _position(unfinished[-1].start_mark if unfinished else loader.get_mark())
        problem = f"not valid YAML{at}: invalid number, date or tagged value"
        raise root.error(problem, "correct it, or quote it if it is text") from error


def _position(mark: Mark | None) -> str:
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _is_bounded(root: Node) -> bool:
    """Whether a document is small enough to construct, with its aliases expanded."""
    return all(level <= _LEVELS and count < _VALUES for count, (_, level) in enumerate(_nodes(root)))


def _anchored_keys(root: Node) -> frozenset[str]:
    rows = root.value if not isinstance(root.value, str) else ()
    uses = [(row[0].value, {id(node) for node, _ in _nodes(row[1])}) for row in rows if isinstance(row, tuple)]
    counts = Counter(node for _, nodes in uses for node in nodes)
    return frozenset(key for key, nodes in uses if isinstance(key, str) and any(counts[node] > 1 for node in nodes))


def _nodes(root: Node) -> Iterator[tuple[Node, int]]:
    """Yield the nodes of a document with their levels, those behind aliases again."""
    stack = [(root, 1)]
    while stack:
        node, level = stack.pop()
        yield node, level
        for child in node.value if not isinstance(node.value, str) else ():
            stack.extend((inner, level + 1) for inner in (child if isinstance(child, tuple) else (child,)))
