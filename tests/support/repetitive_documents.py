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
    "attendance": lines("______________________ | ________ | [ ]", 30),
    "wide form": "姓名：" + "＿" * 60 + "\n電話：" + "＿" * 60,
    "checkboxes": framed(lines("- [ ] ", 20), "Tasks:\n"),
    "many checkboxes": framed(lines("- [ ] ", 100), "Habits:\n"),
    "boxes in a row": "Water: " + "☐ " * 31 + "\nSport: " + "☐ " * 31,
    "habits": "".join(f"| {habit} |" + " ☐ |" * 31 + "\n" for habit in ("Water", "Sport", "Sleep", "Read")),
    "labels": "ACME Ltd\n12 High Street\nLondon N1 7AA\nUnited Kingdom\n\n" * 30,
    "tickets": "+---------------+\n|  ADMIT ONE    |\n|  Sat 14:00    |\n+---------------+\n\n" * 24,
}
TABLES = {
    "empty rows": "| Name | Age | Town |\n|---|---|---|\n" + lines("|  |  |  |", 10),
    "many empty rows": "| Name | Age | Town |\n|---|---|---|\n" + lines("|      |     |      |", 40),
    "wide empty rows": "|A|B|C|D|E|F|G|H|\n" + lines("|---" * 8 + "|", 1) + lines("|  " * 8 + "|", 40),
    "ledger": lines("| Date | Item | In | Out | Balance |", 1) + lines("|      |      |    |     |         |", 50),
    "week": "".join(f"| {hour}:00 |  |  |  |  |  |\n" for hour in range(6, 23)),
    "wide rule": "|" + "---|" * 60 + "\n|" + " x |" * 60,
    "rows of HTML": framed(lines("<tr><td></td><td></td><td></td></tr>", 20), "<table>\n", "</table>"),
    "indented rows of HTML": lines("  <tr>\n    <td></td>\n    <td></td>\n  </tr>", 25),
    "cells of HTML": framed(lines("<tr>" + "<td>&nbsp;</td>" * 4 + "</tr>", 30), "<table>\n", "</table>"),
    "board": lines("<tr>" + '<td class="w"></td><td class="b"></td>' * 4 + "</tr>", 8),
    "box": framed(lines("│" + " " * 60 + "│", 20), "┌" + "─" * 60 + "┐\n", "└" + "─" * 60 + "┘"),
    "rows of LaTeX": lines("\\hline\n & & \\\\", 25),
    "equal rows of CSV": "user,active,role\n" + lines("guest,true,reader", 60),
    "empty rows of CSV": "a,b,c,d,e,f\n" + lines(",,,,,", 60),
    "multiplication": "\n".join(f"{a} x {b} = {a * b}" for a in range(1, 13) for b in range(1, 13)),
    "multiplication grid": "\n".join("\t".join(str(a * b) for b in range(1, 13)) for a in range(1, 13)),
}
NUMBERS = {
    "zeros": "[" + dump("0", 200, 1, ", ") + "]",
    "buffer": "uint8_t buffer[256] = {\n" + dump("0x00", 8, 32, ", ") + "\n};",
    "table of zeros": "int table[256] = {" + dump("0", 256, 1, ", ") + "};",
    "matrix of zeros": framed(lines("[" + dump("0", 20, 1, ", ") + "],", 20), "[\n", "]"),
    "plain zeros": dump("0", 16, 16),
    "hexdump": dump("00", 16, 32),
    "hexdump with places": "\n".join(f"{row * 16:08x}: " + "0000 " * 8 for row in range(32)),
    "bytes": "00000000 " * 64,
    "bits": "01" * 256,
    "third": "1/3 = 0." + "3" * 200 + "...",
    "large number": "10^300 = 1" + "0" * 300,
    "identity": "\n".join(" ".join(str(int(row == column)) for column in range(16)) for row in range(16)),
    "base64": "A" * 400 + "==",
    "readings": "\n".join(f"2024-{month:02}-{day:02},0.0,0.0" for month in range(1, 13) for day in range(1, 29)),
    "sequence": "A" * 120 + "\n" + "AT" * 200 + "\n" + lines("N" * 60, 20),
}
PICTURES = {
    "wall": dump("|___", 7, 24, ""),
    "maze": dump("#", 40, 20, ""),
    "game of life": dump(".", 40, 20, ""),
    "grid": dump(".", 20, 20),
    "checkers": dump("█ ", 20, 20, ""),
    "tree": "".join(" " * (20 - row) + "*" * (2 * row + 1) + "\n" for row in range(20)) + lines(" " * 19 + "|||", 6),
    "sudoku": ("| . . . | . . . | . . . |\n" * 3 + "+-------+-------+-------+\n") * 3,
    "noughts and crosses": ("   |   |   \n---+---+---\n" * 2 + "   |   |   \n\n") * 8,
    "wave": "~^" * 200,
    "stars": "⭐" * 100,
    "laughing": "😂" * 150 + " that was funny",
    "drums": "HH|x-x-x-x-x-x-x-x-|\nSD|----o-------o---|\nBD|o-------o-------|\n\n" * 16,
    "guitar": "".join(f"{string}|-----------------|\n" for string in "eBGDAE") * 12,
    "melody": "C C G G | A A G2 | F F E E | D D C2 |\n" * 16,
    "blank lines": "Title\n" + "\n" * 100 + "End",
    "spaces": "a" + " " * 400 + "b" + "\t" * 100 + "c",
}
WORDS = {
    "song": lines("We will, we will rock you", 4),
    "longer song": lines("Around the world, around the world", 72),
    "refrains": lines("We sail away,\nThe sea is wide, the sky is grey,\nWe sail until the day.\n", 6),
    "verses": "".join(f"The wind of day {day}\n" + lines("Oh sing with me tonight!", 4) for day in range(9)),
    "syllables": lines("La la la la la la la la,\nla la la la la la!", 20),
    "na na": lines("Na, na na na-na-na na, na-na-na na, hey Jude.", 18),
    "mantra": lines("Om Namah Shivaya", 108),
    "litany": lines("Lord, have mercy. Christ, have mercy. Lord, have mercy.", 12),
    "bottles": "".join(f"{n} bottles of beer on the wall, {n} bottles of beer.\n" for n in range(99, 50, -1)),
    "laughter": "ha " * 100 + "- very funny!",
    "long laughter": "ha" * 200 + "!",
    "cry": "N" + "o" * 300 + "!",
    "lines for school": lines("I will not talk in class.", 100),
    "homework": lines("I must do my homework before I go out to play.", 50),
    "dull boy": "All work and no play makes Jack a dull boy. " * 80,
    "greetings": "hello " * 200,
    "equal answers": lines("yes", 100),
    "Chinese lines": lines("我以后再也不迟到了。", 50),
    "Japanese lines": lines("すみませんでした。", 50),
    "Russian lines": lines("Я больше не буду опаздывать на уроки.", 40),
    "Arabic lines": lines("لن أتأخر مرة أخرى.", 40),
    "placeholder text": "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor. " * 10,
    "dialogue": "A: Are we there yet?\nB: No.\n" * 30,
    "breath": "Breathe in... 1, 2, 3, 4. Hold... 1, 2, 3, 4. Breathe out... 1, 2, 3, 4.\n" * 20,
    "workout": lines("30 seconds jumping jacks, 10 seconds rest", 24),
    "knitting": lines("Row: K2, P2, K2, P2, K2, P2, K2, P2.", 40),
    "plan": "".join(f"Week {week}: run 5 km, rest, run 5 km, rest, run 8 km, rest, rest.\n" for week in range(1, 40)),
}
CODE = {
    "nothing": lines("    nop", 100) + lines("    db 0", 100),
    "methods": "".join(f"    def method_{n}(self):\n        pass\n\n" for n in range(60)),
    "closing braces": "".join("  " * depth + "}\n" for depth in range(30, 0, -1)),
    "elements": lines("<div></div>", 80) + framed(lines("  <li></li>", 60), "<ul>\n", "</ul>") + lines("<br>", 60),
    "spaces of HTML": "&nbsp;" * 120,
    "rules of CSS": lines(".cell { width: 10px; height: 10px; background: #fff; }", 20),
    "squares": lines('<rect x="0" y="0" width="10" height="10" fill="none" stroke="black"/>', 20),
    "assertions": lines("    assert_equal(f(0), 0)", 30),
    "inserts": lines("INSERT INTO t (a, b) VALUES (NULL, NULL);", 40),
    "nulls": "[" + dump("null", 200, 1, ", ") + "]",
    "empty objects": "[\n" + ",\n".join(['  {"name": "", "age": null, "email": ""}'] * 40) + "\n]",
    "linked list": '{"value": 0, "next": ' * 60 + "null" + "}" * 60,
    "brackets": "[" * 100 + "]" * 100 + "(cons 1 " * 80 + "nil" + ")" * 80,
    "blank entries": "- name: \n  email: \n  phone: \n" * 25,
    "log": lines("[INFO] Waiting for connection...", 40) + lines("Request timed out.", 50),
}
DOCUMENTS = {**FORMS, **TABLES, **NUMBERS, **PICTURES, **WORDS, **CODE}
