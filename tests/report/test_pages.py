"""One report in three dresses."""

import re
from html.parser import HTMLParser

from resbackbones import report


def page(**changes: object) -> report.Page:
    lines = [
        report.Line("plain", [8, 56], [0.9, 0.2]),
        report.Line("residual", [8, 56], [0.9, 0.95]),
    ]
    panels = [
        report.Panel(title, "depth", "accuracy, %", lines, {"baseline": 0.8}, x_ticks=[8, 56])
        for title in ("Vision, 3 seeds", "Speech, 3 seeds")
    ]
    verdict = report.Verdict(
        "depth 56",
        "skip <helped>",
        "good",
        {"residual": 0.912, "plain": 0.2},
        "+71.2 points, 3 seeds",
    )
    given = {
        "title": "Title",
        "lead": "Lead.",
        "cards": [report.Card("Vision", "digits & co", [verdict], "Vision (digits): all is told.")],
        "plots": [report.Plot("Accuracy", "A caption.", panels)],
        "header": ["domain", "arm", "accuracy"],
        "rows": [["vision", "plain", "20.0 %"], ["vision", "residual", "91.2 %"]],
        "notes": {"The rule": "One `rule`."},
    }
    return report.Page(**(given | changes))  # type: ignore[arg-type]


class Tags(HTMLParser):
    """Counts what is opened and checks that it is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_html_is_one_whole_file_that_needs_no_other() -> None:
    text = page().html()
    tags = Tags(text)
    assert not tags.open
    assert tags.seen.count("svg") == 2  # a panel each, so that a narrow page can stack them
    assert "script" not in tags.seen and "link" not in tags.seen
    assert not re.findall(r'(?:src|href)="(?!#)(?!http://www.w3.org)[^"]+"|url\(.?http', text)
    assert "skip &lt;helped&gt;" in text and "digits &amp; co" in text


def test_a_card_shows_verdict_and_figures_and_keeps_the_rest_behind() -> None:
    article = page().html().split("<article>")[1].split("</article>")[0]
    front, behind = article.split("<details>")
    assert "depth 56" in front and "91.2 %" in front and "20.0 %" in front
    assert "width:91.2%;background:" + report.COLOURS["residual"] in front
    assert "all is told" in behind and "all is told" not in front
    assert "+71.2 points, 3 seeds" in behind


def test_all_three_hold_flags_sentences_and_table() -> None:
    flagged = page(flags=["A look, not a claim."])
    for text in (flagged.text(), flagged.markdown(), flagged.html()):
        assert "A look, not a claim." in text and "Vision (digits): all is told." in text
        assert "91.2 %" in text
    assert flagged.table() in flagged.text() and flagged.table() in flagged.markdown()
    assert "**The rule.** One `rule`." in flagged.markdown()
    assert "A look" not in page().html()


def test_a_group_of_rows_is_named_once() -> None:
    body = page().html().split("<tbody>")[1].split("</tbody>")[0]
    assert body.count("vision") == 1 and body.count("<tr") == 2


def test_no_line_of_the_terminal_starts_with_a_percent_sign() -> None:
    words = "word " * 40
    for width in range(40, 60):
        card = report.Card("Vision", "", [], f"{words}100.0 % {words}")
        lines = page(cards=[card]).text(width).split("\n\n")[-1].splitlines()
        assert not any(line.startswith("%") for line in lines)
        assert "100.0 %" in " ".join(lines) and max(map(len, lines)) <= width


def test_a_report_without_findings_is_still_one() -> None:
    empty = page(plots=[], cards=[], rows=[["vision", "plain", "-"]])
    assert not Tags(empty.html()).open and empty.markdown().startswith("# Title\n\n")
