"""Documents that repeat themselves and end, of the kinds and lengths that replies have."""


def lines(line: str, count: int) -> str:
    return f"{line}\n" * count


def framed(rows: str, before: str = "Here it is:\n\n", after: str = "\nThat is all.") -> str:
    return before + rows + after


def dump(value: str, columns: int, rows: int, separator: str = " ") -> str:
    return "\n".join(separator.join([value] * columns) for _ in range(rows))


FORMS = {
    "line of underscores": "Name: " + "_" * 160 + "\nDate: " + "_" * 40,
    "long line of underscores": "Signature\n" + "_" * 800 + "\n",
    "answer lines": framed(lines("_" * 72, 25)),
    "answer lines apart": framed(lines("_" * 72 + "\n", 40)),
    "labels and lines": "".join(f"{label}: {'_' * 60}\n" for label in ("Name", "Street", "Town", "Phone", "Date")),
    "contents with dots": "".join(f"{title:.<60} {page}\n" for page, title in enumerate(("Method", "Data", "End"))),
    "line of dots": "Fill in: " + "." * 400 + " Thanks.",
    "rules": "-" * 300 + "\nTitle\n" + "=" * 300,
    "rules with spaces": "- " * 150 + "\nTitle\n" + "* " * 150,
    "banner": lines("=" * 79, 6) + "BANNER\n" + lines("=" * 79, 6),
    "cut lines": lines("- - - - - - - - ✂ - - - - - - - -\n", 6),
    "blocks of fields": "Name: ______________\nAge: ____\nSignature: ______________\n\n" * 10,
    "seats": lines("Name: ______________  Seat: ____", 20),
    "wide form": "姓名：" + "＿" * 60 + "\n電話：" + "＿" * 60,
    "checkboxes": framed(lines("- [ ] ", 20), "Tasks:\n"),
    "boxes in a row": "Water: " + "☐ " * 31 + "\nSport: " + "☐ " * 31,
    "habits": "".join(f"| {habit} |" + " ☐ |" * 31 + "\n" for habit in ("Water", "Sport", "Sleep", "Read")),
}
TABLES = {
    "empty rows": "| Name | Age | Town |\n|---|---|---|\n" + lines("|  |  |  |", 10),
    "week": "".join(f"| {hour}:00 |  |  |  |  |  |\n" for hour in range(6, 23)),
    "wide rule": "|" + "---|" * 60 + "\n|" + " x |" * 60,
    "box": framed(lines("│" + " " * 60 + "│", 20), "┌" + "─" * 60 + "┐\n", "└" + "─" * 60 + "┘"),
    "rows of LaTeX": lines("\\hline\n & & \\\\", 25),
    "empty rows of CSV": "a,b,c,d,e,f\n" + lines(",,,,,", 60),
    "multiplication": "\n".join(f"{a} x {b} = {a * b}" for a in range(1, 13) for b in range(1, 13)),
    "multiplication grid": "\n".join("\t".join(str(a * b) for b in range(1, 13)) for a in range(1, 13)),
}
NUMBERS = {
    "hexdump with places": "\n".join(f"{row * 16:08x}: " + "0000 " * 8 for row in range(32)),
    "third": "1/3 = 0." + "3" * 200 + "...",
    "identity": "\n".join(" ".join(str(int(row == column)) for column in range(16)) for row in range(16)),
    "base64": "A" * 400 + "==",
    "readings": "\n".join(f"2024-{month:02}-{day:02},0.0,0.0" for month in range(1, 13) for day in range(1, 29)),
}
PICTURES = {
    "maze": dump("#", 40, 20, ""),
    "game of life": dump(".", 40, 20, ""),
    "tree": "".join(" " * (20 - row) + "*" * (2 * row + 1) + "\n" for row in range(20)) + lines(" " * 19 + "|||", 6),
    "sudoku": ("| . . . | . . . | . . . |\n" * 3 + "+-------+-------+-------+\n") * 3,
    "noughts and crosses": ("   |   |   \n---+---+---\n" * 2 + "   |   |   \n\n") * 8,
    "stars": "⭐" * 100,
    "laughing": "😂" * 150 + " that was funny",
    "blank lines": "Title\n" + "\n" * 100 + "End",
    "spaces": "a" + " " * 400 + "b" + "\t" * 100 + "c",
}
WORDS = {
    "song": lines("We will, we will rock you", 4),
    "refrains": lines("We sail away,\nThe sea is wide, the sky is grey,\nWe sail until the day.\n", 6),
    "verses": "".join(f"The wind of day {day}\n" + lines("Oh sing with me tonight!", 4) for day in range(9)),
    "litany": lines("Lord, have mercy. Christ, have mercy. Lord, have mercy.", 12),
    "bottles": "".join(f"{n} bottles of beer on the wall, {n} bottles of beer.\n" for n in range(99, 50, -1)),
    "laughter": "ha " * 100 + "- very funny!",
    "long laughter": "ha" * 200 + "!",
    "cry": "N" + "o" * 300 + "!",
    "equal answers": lines("yes", 100),
    "placeholder text": "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor. " * 10,
    "plan": "".join(f"Week {week}: run 5 km, rest, run 5 km, rest, run 8 km, rest, rest.\n" for week in range(1, 40)),
}
CODE = {
    "methods": "".join(f"    def method_{n}(self):\n        pass\n\n" for n in range(60)),
    "closing braces": "".join("  " * depth + "}\n" for depth in range(30, 0, -1)),
    "spaces of HTML": "&nbsp;" * 120,
}
DOCUMENTS = {**FORMS, **TABLES, **NUMBERS, **PICTURES, **WORDS, **CODE}
