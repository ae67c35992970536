"""YAML read into plain values, with an error that names the location whatever a text holds: the one door to PyYAML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerebrum_cli.merge.location import Location, truncate

if TYPE_CHECKING:
    from yaml.error import Mark
    from yaml.nodes import Node

_LEVELS, _VALUES = 20, 100_000  # aliases followed: far beyond any recipe, and read in no time


def read_document(root: Location, text: str) -> object:
    """Return what the only YAML document of a text holds, whatever its types."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise root.error("it is empty", "write a recipe: its merge_method, and slices or models")
        if not _is_bounded(node):
            raise root.error("it nests too deep or repeats too much", "write it with fewer levels and aliases")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        reason = " ".join(filter(None, [error.context, error.problem]))
        raise root.error(
            f"not valid YAML{_position(error.problem_mark)}: {truncate(reason, 200)}", "correct it there"
        ) from error
    except yaml.reader.ReaderError as error:
        lines = text[: error.position].split("\n")
        at = f"line {len(lines)}, column {len(lines[-1]) + 1}"
        raise root.error(f"not valid YAML at {at}: {error.reason}", "remove the character there") from error
    except RecursionError as error:
        raise root.error("it nests too deep", "write it with fewer levels") from error
    # PyYAML lets through what int(), date(), re and its tables say of numbers, dates and tagged values that are none.
    except (ValueError, LookupError, AttributeError, ArithmeticError, TypeError) as error:
        begun = list(loader.recursive_objects)  # the nodes it was in the middle of
        at = _position(begun[-1].start_mark if begun else loader.get_mark())
        what = f"not valid YAML{at}: the number, date or tagged value is none"
        raise root.error(what, "correct it, or put it in quotes if it is a text") from error


def _position(mark: Mark | None) -> str:
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _is_bounded(root: Node) -> bool:
    """Return whether a document is of a size to be read, each alias counted as all it stands for."""
    count, waiting = 0, [(root, 1)]
    while waiting:
        node, level = waiting.pop()
        count += 1
        if level > _LEVELS or count > _VALUES:
            return False
        for child in node.value if not isinstance(node.value, str) else ():
            waiting.extend((inner, level + 1) for inner in (child if isinstance(child, tuple) else (child,)))
    return True
