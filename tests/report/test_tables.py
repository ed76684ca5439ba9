"""Tables of text."""

from resbackbones import report


def test_a_bar_in_a_cell_does_not_break_the_table() -> None:
    assert r"a\|b" in report.markdown_table(["x"], [["a|b"]])


def test_every_line_of_a_table_is_as_long() -> None:
    table = report.markdown_table(
        ["arm", "value"], [["plain", "0.5"], ["residual", "85.0 ± 1.0 %"]]
    )
    assert len({len(line) for line in table.splitlines()}) == 1
