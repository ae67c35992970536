"""Documents that repeat themselves and end, of the kinds and lengths that replies have."""


def lines(line: str, count: int) -> str:
    return f"{line}\n" * count


DOCUMENTS = {
    "line of underscores": "Name: " + "_" * 160 + "\nDate: " + "_" * 40,
    "answer lines": "Here it is:\n\n" + lines("_" * 72, 25) + "\nThat is all.",
    "blocks of fields": "Name: ______________\nAge: ____\nSignature: ______________\n\n" * 10,
    "contents with dots": "".join(f"{title:.<60} {page}\n" for page, title in enumerate(("Method", "Data", "End"))),
    "rules with spaces": "- " * 150 + "\nTitle\n" + "* " * 150,
    "wide form": "姓名：" + "＿" * 60 + "\n電話：" + "＿" * 60,
    "habits": "".join(f"| {habit} |" + " ☐ |" * 31 + "\n" for habit in ("Water", "Sport", "Sleep", "Read")),
    "empty rows": "| Name | Age | Town |\n|---|---|---|\n" + lines("|  |  |  |", 10),
    "week": "".join(f"| {hour}:00 |  |  |  |  |  |\n" for hour in range(6, 23)),
    "rows of LaTeX": lines("\\hline\n & & \\\\", 25),
    "multiplication": "\n".join(f"{a} x {b} = {a * b}" for a in range(1, 13) for b in range(1, 13)),
    "items": "\n".join(f"{n}. Item {n}" for n in range(1, 300)),
    "hexdump with places": "\n".join(f"{row * 16:08x}: " + "0000 " * 8 for row in range(32)),
    "third": "1/3 = 0." + "3" * 200 + "...",
    "identity": "\n".join(" ".join(str(int(row == column)) for column in range(16)) for row in range(16)),
    "readings": "\n".join(f"2024-{month:02}-{day:02},0.0,0.0" for month in range(1, 13) for day in range(1, 29)),
    "tree": "".join(" " * (20 - row) + "*" * (2 * row + 1) + "\n" for row in range(20)) + lines(" " * 19 + "|||", 6),
    "sudoku": ("| . . . | . . . | . . . |\n" * 3 + "+-------+-------+-------+\n") * 3,
    "laughing": "😂" * 150 + " that was funny",
    "blank lines": "Title\n" + "\n" * 100 + "End",
    "refrains": lines("We sail away,\nThe sea is wide, the sky is grey,\nWe sail until the day.\n", 6),
    "verses": "".join(f"The wind of day {day}\n" + lines("Oh sing with me tonight!", 4) for day in range(9)),
    "long laughter": "ha" * 200 + "!",
    "equal answers": lines("yes", 100),
    "plan": "".join(f"Week {week}: run 5 km, rest, run 5 km, rest, run 8 km, rest, rest.\n" for week in range(1, 40)),
    "methods": "".join(f"    def method_{n}(self):\n        pass\n\n" for n in range(60)),
    "closing braces": "".join("  " * depth + "}\n" for depth in range(30, 0, -1)),
}
