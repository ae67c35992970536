"""A program that prints the text of a document. It is run in a process of its own, with limits.

markitdown writes for readers of Markdown: it adds a backslash to each `_` and `*` unless it is told not to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile, is_zipfile


def main(path: Path) -> None:
    text = workbook_text(path) if is_workbook(path) else markdown(path)
    sys.stdout.buffer.write(f"{text}\n".encode(errors="replace"))


def markdown(path: Path) -> str:
    sys.modules["pandas"] = None  # type: ignore[assignment]  # a third of markitdown's start, for workbooks alone
    from markitdown import MarkItDown, StreamInfo

    charset = "utf-8" if path.suffix.lower() in (".html", ".htm") else None  # as the caller has written it
    document = MarkItDown().convert(
        path, stream_info=StreamInfo(charset=charset), escape_asterisks=False, escape_underscores=False
    )
    return str(document.markdown)


def is_workbook(path: Path) -> bool:
    return is_zipfile(path) and "xl/workbook.xml" in ZipFile(path).namelist()


def workbook_text(path: Path) -> str:
    """The sheets of a workbook as tables. pandas, which markitdown uses for them, rounds numbers and drops "NA"."""
    from openpyxl import load_workbook

    with path.open("rb") as file:  # whose name may end otherwise
        book = load_workbook(file, data_only=True)
    sheets = []
    for sheet in book.worksheets:
        rows = [" | ".join(map(cell_text, row)) for row in sheet.values]
        lines = [f"| {row} |" for row in rows if row.strip(" |")]
        if lines:
            lines.insert(1, "|" + " --- |" * sheet.max_column)
        sheets.append("\n".join([f"## {sheet.title}", *lines]))
    return "\n\n".join(sheets)


def cell_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.15g}"  # the digits that Excel has
    return "" if value is None else " ".join(str(value).splitlines())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
