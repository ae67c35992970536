"""Small documents: PDFs written by hand, and Office files with only the parts that readers need."""

import zipfile
from pathlib import Path

WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
DOCUMENT = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
WORD_XML = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PASSWORDS = b"/O<%s>/U<%s>" % (b"11" * 32, b"22" * 32)  # that nobody knows
ENCRYPTED = b"/ID[<00><00>]/Encrypt<</Filter/Standard/V 1/R 2/P -4/Length 40" + PASSWORDS + b">>"


def pdf(text: str, trailer: bytes = b"") -> bytes:
    """A PDF of one page with a line of text; without text, it looks like a scanned one."""
    content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>"
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        page,
        b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )
    data = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, each in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    start = len(data)
    data += b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += b"trailer<</Size 6/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (trailer, start)
    return bytes(data)


def write_docx(path: Path, text: str, padding: int = 0) -> Path:
    """A Word document with a paragraph, which `padding` megabytes of one letter follow; they take kilobytes."""
    types = f'<Override PartName="/word/document.xml" ContentType="{WORD}"/>'
    relation = f'<Relationship Id="r" Type="{DOCUMENT}" Target="word/document.xml"/>'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{PACKAGE}/content-types">{types}</Types>')
        archive.writestr("_rels/.rels", f'<Relationships xmlns="{PACKAGE}/relationships">{relation}</Relationships>')
        with archive.open("word/document.xml", "w", force_zip64=True) as body:
            body.write(f'<w:document xmlns:w="{WORD_XML}"><w:body><w:p><w:r><w:t>{text}'.encode())
            for _ in range(padding):
                body.write(b"a" * 1_000_000)
            body.write(b"</w:t></w:r></w:p></w:body></w:document>")
    return path


def write_epub(path: Path, text: str) -> None:
    """An e-book of one chapter."""
    files = '<manifest><item id="a" href="a.xhtml" media-type="application/xhtml+xml"/></manifest>'
    metadata = '<metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>T</dc:title></metadata>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml", '<container><rootfiles><rootfile full-path="a.opf"/></rootfiles></container>'
        )
        archive.writestr("a.opf", f'<package>{metadata}{files}<spine><itemref idref="a"/></spine></package>')
        archive.writestr("a.xhtml", f"<html><body><p>{text}</p></body></html>")
