"""Text of bytes whose charset a server or the page itself states, as browsers read it."""

from __future__ import annotations

import codecs
import re
from contextlib import suppress
from typing import NamedTuple

WESTERN = "cp1252"
# What begins a text is stronger than what is stated of it. The marks of UTF-32 begin with those of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Charsets by Python's names, and the larger ones that pages which state them are written in
# (https://encoding.spec.whatwg.org/#names-and-labels).
LARGER = {
    "ascii": WESTERN,
    "iso8859-1": WESTERN,
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "shift_jis": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
OTHER_NAMES = {"x-sjis": "cp932", "x-gbk": "gb18030", "x-mac-roman": "mac-roman", "windows-874": "cp874"}
# Charsets of one byte a character, in which hardly a text is also UTF-8; and all others that are for text.
ONE_BYTE = re.compile(r"ascii|cp125\d|cp8\d\d|iso8859-.*|koi8-.*|kz.*|mac-.*|tis-620")
MANY_BYTES = re.compile(r"utf-(?:8|16|32)(?:-.*)?|big5.*|cp9\d\d|euc_.*|gb.*|hz|iso2022_.*|johab|shift_jis.*")
IN_HEADER = re.compile(r"charset\s*=\s*[\"']?([^\s\"';,]+)", re.IGNORECASE)
IN_PAGE = re.compile(rb"<meta\s[^>]{0,500}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
IN_XML = re.compile(rb"\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]+)")
BEGINNING = 4096  # bytes in which a page states its charset


class DecodedText(NamedTuple):
    """A text, and a note if characters of it may be wrong."""

    text: str
    note: str = ""


def decode(data: bytes, content_type: str, is_html: bool) -> DecodedText | None:
    """Decode a page by its mark, its header, or what it states itself; None for one that is not text.

    A page that is not in the charset stated may be UTF-8; otherwise characters of it are replaced.
    """
    stated = stated_charset(data, content_type, is_html)
    charset = charset_of(stated)
    is_wide = charset.startswith(("utf-16", "utf-32"))
    # Servers state the charset of other pages, too.
    if not charset or ONE_BYTE.fullmatch(charset) or (is_wide and b"\0" not in data):
        candidates = ["utf-8", charset]
    else:
        candidates = [charset, "utf-8"]
    for candidate in filter(None, candidates):
        with suppress(UnicodeError):
            return DecodedText(data.decode(candidate))
    if b"\0" in data and not is_wide:
        return None
    text = data.decode(charset or WESTERN, "replace")
    if charset:
        mark = "\N{REPLACEMENT CHARACTER}"
        note = f"characters that are not valid {stated} and were replaced by {mark}: {text.count(mark):,}"
    else:
        note = f"{f'unknown charset {stated}' if stated else 'no charset stated'}, read as windows-1252"
    return DecodedText(text, note)


def stated_charset(data: bytes, content_type: str, is_html: bool) -> str:
    for mark, charset in MARKS:
        if data.startswith(mark):
            return charset
    if in_header := IN_HEADER.search(content_type):
        return in_header[1]
    beginning = data[:BEGINNING]
    found = IN_XML.match(beginning) or (IN_PAGE.search(beginning) if is_html else None)
    stated = found[1].decode() if found else ""
    return "utf-8" if stated.lower().startswith("utf-16") else stated  # which could not be read here


def charset_of(stated: str) -> str:
    """Python's name of a charset that contains the one stated; empty if it is unknown."""
    label = stated.strip().lower()
    try:
        name = codecs.lookup(OTHER_NAMES.get(label, label)).name
    except LookupError:
        return ""
    is_for_text = ONE_BYTE.fullmatch(name) or MANY_BYTES.fullmatch(name)
    return LARGER.get(name, name) if is_for_text else ""
