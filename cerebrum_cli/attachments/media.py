"""Files that are not read as text, by their first bytes: pictures, sound, films and compressed files."""

from __future__ import annotations

import re
from typing import NamedTuple


class Media(NamedTuple):
    """A kind of file, what is wrong with it, and a hint."""

    beginning: re.Pattern[bytes]
    problem: str
    hint: str


def media(problem: str, hint: str, *beginnings: bytes) -> Media:
    return Media(re.compile(b"|".join(beginnings), re.DOTALL), problem, hint)


OR_COMMAND = ", or set a command for its extension in config.toml, below [documents]"
MEDIA = (
    media(
        "images are not supported",
        f"convert it to PNG, JPEG, GIF or WebP and name it with -f, or recognize its text first (OCR){OR_COMMAND}",
        *(rb"\x89PNG", rb"\xff\xd8\xff", rb"GIF8[79]a.{0,3}[\0-\x08]", rb"RIFF.{4}WEBPVP8"),
        *(rb"BM.{4}\0{4}", rb"II\*\0", rb"MM\0\*", rb"\0\0\x01\0", rb"\0{3}.ftyp(?:avi[fs]|hei[cfsx]|mif1|msf1)"),
    ),
    media(
        "audio is not supported",
        f"transcribe it first{OR_COMMAND}",
        *(
            rb"ID3[\x02-\x04]",
            rb"\xff[\xf1-\xf3\xf9-\xfb]",
            rb"RIFF.{4}WAVE",
            rb"OggS\0",
            rb"fLaC\0",
            rb"\0{3}.ftypM4A",
        ),
    ),
    media(
        "video is not supported",
        f"transcribe it first{OR_COMMAND}",
        *(rb"\0{3}.ftyp", rb"RIFF.{4}AVI ", rb"\x1a\x45\xdf\xa3", rb"FLV\x01", rb"\0\0\x01[\xb3\xba]"),
    ),
    media(
        "compressed files are not supported", f"unpack it first{OR_COMMAND}", rb"\x1f\x8b", rb"BZh\d1AY", rb"\xfd7zXZ"
    ),
)


def media_of(data: bytes) -> Media | None:
    return next((kind for kind in MEDIA if kind.beginning.match(data)), None)
