"""GPT-2's spelling of bytes, in which byte-level BPE vocabularies are written."""


def byte_alphabet() -> list[str]:
    """A character for each of the 256 bytes: printable Latin-1, and letters from U+0100 on for the others."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]
