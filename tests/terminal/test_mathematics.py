"""Prices, shells and regular expressions stay as they were written; mathematics in the same delimiters is shown."""

import pytest
from cases import cases
from hypothesis import given, strategies as st
from screen import rendered_lines

NO_MATHEMATICS = [
    "Profit ($) = Revenue ($) - Cost ($)",
    "For May: Profit ($) = 500 ($) - 320 ($) = 180",
    "The pair USD ($)/CAD ($), at $5/unit or 10$",
    "It is $5/kg or $10/kg, 5$/lb, $20k = 1.5M$ and $1,299.00 + 0.99$",
    "Earn $500-$1,000, or $6k/yr + $2k; 5$ = 4€, 10$ = 8€",
    "It costs $3.50$ or $5$, -$5, $5 to $10, $1,000$, $-5 or $-6$",
    r"find . \( -name '*.c' \) -print",
    r"find . -type f \( -iname \*.jpg -o -iname \*.png \) -exec ls {} \;",
    r"find . \( -path ./a -o -path ./b \) -prune",
    r"grep '\(ab\|cd\)' f; grep 'x\{3\}\(a\)'",
    r"sed 's/\(.*\)@\(.*\)/\2 \1/'; sed 's/\([0-9]\{3\}\)/\1/'",
    r"\[^0-9\] and \[a-z\], \[x\] done, \[key=value\], \[TODO: a=b\]",
    "^(a|b)$|^(c|d)$, ^a*$|^b*$, ^[a-z]+$|^[0-9]+$ and ^.{3}$|^.{4}$",
    r"^\d{3}$|^\w+$ and \(\d+\)\s*\[(\w+)\]",
    r"PS1='\[\e[32m\]\u@\h\[\e[0m\]:\w\$ '",
    "kill $$ and echo $$, $HOME/$USER, $? -eq 0 && $1 = $2",
    r"if [ \( $a = 1 \) -a \( $b = 2 \) ]",
    'my ($a, $b) = @_; $a =~ s/x/y/; $b =~ /^z$/ or "$x" = "$y"',
    "$x->{name} = $y->{name}; $params{a}/b:$ and $src_file = $dl_so",
    r"location ~ \.(png|jpg)$ { } and location ~ ^/(a|b)$ {",
    r"\[A-Z\]\{3\} and \1",
    r"mv my\ file\ \(1\).txt a\(1\).txt; open \(x\).pdf; if \[ -f x \]; then test \( -n x \); fi",
    r"groups are \(optional\)",
    "5 €/$ ; 1 $ = 0.92 €; 100 $ = 92 €; $1 = €0.92",
    r"$(A)$(B) $^ $_ $1$2; $\w$ $\d$; echo $_$x",
]


@pytest.mark.parametrize("text", NO_MATHEMATICS)
def test_text_between_delimiters_that_is_no_mathematics_stays(text: str) -> None:
    assert rendered_lines(text, 200, 10) == [text]


@pytest.mark.parametrize(
    ("latex", "shown"),
    [
        (r"设$x_1=5$，则\(x+1\)。", "设x₁ = 5，则x+1。"),
        (r"\(\frac{1}{2}\)-th, \(n\)th, **\(x = 5\)** and *$y_1$*", "1/2-th, nth, x = 5 and y₁"),
        (r"$\$5 \times 3 = \$15$ and $5", "$5 × 3 = $15 and $5"),
        (r"\( -b \pm \sqrt{b^2} \), \[ Total = 5 + 3 \]", "-b ± √(b²), Total = 5 + 3"),
        (r"$f: A \to B$, \(P(A|B)\), $\|x\| \le 1$", "f: A → B, P(A|B), ‖x‖ ≤ 1"),
        (r"$k \mid n$, $^{\circ}C$, \(f'(x)\), $O(n \log n)$", "k | n, °C, f'(x), O(n log n)"),
        (r"$-\frac{2}{3}$, $2\left(x\right)$", "-2/3, 2(x)"),
        (
            r"CO$_2$, 5 m$^2$, 10$^{-3}$, a$_i$, Na$^+$, 37$^\circ$C, $\mu$m, 3$\times$4",
            "CO₂, 5 m², 10⁻³, aᵢ, Na⁺, 37°C, μm, 3$\\times$4",
        ),
        (r"*where \(x\)*, $1{,}000{,}000$ and $12{,}500$.", "where x, 1,000,000 and 12,500."),
        (r"*where \(x\)* and \(x^*\), then **\(y\)**", "where x and x^*, then y"),
        (r"$\text{unit_price} \times \mathrm{arg_max}$, $\mathrm{CO_2}$", "unit_price × arg_max, CO₂"),
    ],
)
def test_mathematics_beside_other_text_is_shown(latex: str, shown: str) -> None:
    assert rendered_lines(latex, 200, 10) == [shown]


def test_lines_between_delimiters_that_are_no_mathematics_stay() -> None:
    text = "kill $$\necho $$\n\n\\[\nsee the notes below\n\\]"
    assert rendered_lines(text, 80, 10) == text.split("\n")
    text = "\\begin{itemize}\n\\item a_b^c\n\\end{itemize}\n\\begin{verbatim}\na^2\n\\end{verbatim}"
    assert rendered_lines(text, 80, 10) == text.split("\n")


def test_bars_of_mathematics_do_not_divide_the_cells_of_a_table() -> None:
    table = "| a | b |\n|---|---|\n| $|x| \\ge 0$ | `a<br>b`<br>c |\n| $5 | 6$ |\n"
    table += "| \\(P(A | B)\\) | $\\{x | x > 0\\}$ |"
    rows = [row.split("   ") for row in rendered_lines(table, 80, 20)[2:]]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["|x| ≥ 0", "a<br>b"],
        ["c"],
        [],
        ["$5", "6$"],
        ["P(A | B)", "{x | x > 0}"],
    ]


# Random texts. What may be either, such as `$5 + 6$`, is not among them.

AMOUNTS = st.sampled_from(["5", "10", "1,299.00", "0.99", "500", "1.5M", "20k"])
PREFIXED = ["${}", "US${}", "${}/unit", "${}/kg", "(${})", "${}+", "-${}", "~${}", "${} each", "${0}-${0}", "{} ($)"]
SUFFIXED = ["{}$", "{}$/kg", "US$ {}", "{} ($)", "{}$ each", "{0}-{0}$"]
AMONG_PRICES = st.sampled_from([" ", " and ", " or ", ", ", " + ", " - ", " = ", " x ", "/", " to ", " | "])
WORDS = ["f", "a.txt", "-n", "--all", "'x.c'", '"x y"', "/tmp", "-o", "!", "=", "&&", "||", "|", ">", "2>&1", ";"]
VARIABLES = [
    "$HOME",
    "$x",
    "$1",
    "${x}",
    "${name:-y}",
    "$(date)",
    "$?",
    "$!",
    "$#",
    '"$x"',
    '"$@"',
    "$PATH",
    "$_",
    "$i",
]
TESTS = ["-name 'x.c'", "-name a", "-type f", "-perm -4000", "-path ./a", "-newer x", "-size +1M", "-empty"]
ATOMS = ["a", "foo", "[a-z]", "[^0-9]", r"\d", r"\s", ".", r"\.", "[abc]", r"\$", "/"]


def joined(parts: st.SearchStrategy[str], between: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(between, parts), max_size=4)
    return st.builds(lambda first, others: first + "".join(map("".join, others)), parts, pairs)


def prices(forms: list[str]) -> st.SearchStrategy[str]:
    price = st.builds(str.format, st.sampled_from(forms), AMOUNTS)
    return joined(price, AMONG_PRICES)


def expressions(opening: str, closing: str, either: str, quantifiers: list[str]) -> st.SearchStrategy[str]:
    def group(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return joined(inner, st.sampled_from(["", either])).map(lambda body: opening + body + closing)

    atoms = st.recursive(st.sampled_from(ATOMS), group, max_leaves=5)
    quantified = st.builds("{}{}".format, atoms, st.sampled_from(quantifiers))
    return joined(quantified, st.just("")).map(lambda body: f"^{body}$")


COMMANDS = joined(st.sampled_from(WORDS + VARIABLES), st.just(" "))
SEARCHES = joined(st.sampled_from(TESTS), st.sampled_from([" -o ", " -a "]))
EXTENDED = expressions("(", ")", "|", ["", "", "*", "+", "?", "{3}", "{2,5}"])
BASIC = expressions(r"\(", r"\)", r"\|", ["", "*", r"\+", r"\?", r"\{3\}", r"\{2,5\}"])
NAMES = st.sampled_from(["$a", "$b", "$x", "$user_id", "$_", "$h{k}", "$a[0]", "$p->q"])  # of PHP and Perl
STATEMENTS = st.builds("{} {} {}".format, NAMES, st.sampled_from(["=", "==", "+=", ".", "=>", "<", "=~"]), NAMES)
COLUMNS = ["USD ($)", "Price ($)", "Cost ($/kg)", "EUR (€)", "$/unit", "Δ ($)"]
TEXTS = st.one_of(
    prices(PREFIXED),
    prices(SUFFIXED),
    COMMANDS.map("echo {}".format),
    SEARCHES.map(r"find . \( {} \) -print".format),
    joined(EXTENDED, st.sampled_from(["|", " or ", ", "])),
    joined(BASIC, st.sampled_from([" or ", ", "])),
    BASIC.map("sed 's/{}/\\1/g' a.txt".format),
    BASIC.map("grep -o '{}' a.txt | wc -l".format),
    EXTENDED.map("if ($x =~ /{}/i)".format),
    joined(STATEMENTS, st.sampled_from(["; ", ", ", " && "])),
    st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=4).map("/".join),
)


@pytest.mark.slow
@cases(150)
@given(TEXTS)
def test_random_prices_shells_and_regular_expressions_stay(text: str) -> None:
    assert rendered_lines(text, 500, 10) == [text.rstrip()]
