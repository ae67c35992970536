"""Write the tables of keys and slash commands into README.md, from the code that obeys them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cerebrum_cli.terminal.repl.slash_table import KEYS, SLASH_COMMANDS

README = Path(__file__).parents[1] / "README.md"


def main() -> None:
    """Rewrite what stands between the marks."""
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """Return a text with its tables as the code has them; ValueError where a mark is missing."""
    slashes = ((f"/{slash.name} {slash.argument}".rstrip(), slash.help) for slash in SLASH_COMMANDS)
    for name, heads, rows in (
        ("slashes", ("command", "what it does"), slashes),
        ("keys", ("key", "what it does"), KEYS),
    ):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"README.md has no {begin.strip()} ... {end}")
        text = f"{before}{begin}{table(heads, rows)}{end}{after}"
    return text


def table(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    """Return a Markdown table, what is typed as code."""
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---|"]
    lines += [f"| `{typed.replace('|', chr(92) + '|')}` | {does} |" for typed, does in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
