"""The README's tables, made from the records."""

from pathlib import Path
from typing import Any

import pytest

from resbackbones import report


def record(arm: str = "resnet20", mean: float = 0.85, **changes: Any) -> report.Record:
    given: dict[str, Any] = {
        "task": "vision",
        "dataset": "CIFAR-10-JPEG",
        "protocol": "official split",
        "metric": "accuracy",
        "seeds": [0, 1, 2],
        "values": [mean - 0.01, mean + 0.01, mean],
        "seconds": [10.0, 12.0, 11.0],
        "parameters": 269_722,
        "macs": 40_551_040,
        "baseline": ("HOG + linear SVC", 0.6),
    }
    return report.result_record(arm=arm, **(given | changes))


def cells(table: str, arm: str) -> list[str]:
    """The cells of the one row that names this net."""
    (row,) = [line for line in table.splitlines() if f"| {arm} " in line]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_net_stands_beside_its_twin_the_baseline_and_the_published() -> None:
    figure = {"name": "WRN-28-10", "value": 0.96, "source": "arXiv:1605.07146"}
    table = report.results_table([record(published=figure), record("resnet20-plain", 0.7)])
    assert cells(table, "resnet20")[2:8] == [
        "resnet20",
        "accuracy",
        "85.0 ± 1.0 % (3)",
        "70.0 ± 1.0 % (3)",
        "HOG + linear SVC: 60.0 %",
        "WRN-28-10: 96.0 % (arXiv:1605.07146)",
    ]
    assert "resnet20-plain" not in table and "270 k" in table and "40.6 M" in table
    alone = report.results_table([record("resnet20-plain", 0.7, published=figure | {"on": "x"})])
    assert cells(alone, "resnet20-plain")[7].startswith("none on this split; on x, WRN-28-10:")


def test_nets_are_in_their_natural_order_and_metrics_named() -> None:
    table = report.results_table([record("net-56"), record("net-8", baseline=None)])
    assert table.index("net-8") < table.index("net-56")
    assert cells(table, "net-8")[6:8] == ["none", "-"]
    lower = record(metric="wer", higher_is_better=False)
    assert "wer (lower)" in report.results_table([lower])
    for table in report.TABLES.values():
        assert table([]) == "No results are recorded yet."


def test_a_machine_is_said_once_or_for_each_row() -> None:
    one = record()
    assert f"\n\nAll measured on {one.hardware['cores']} x" in report.results_table([one])
    other = record("resnet32")
    other.hardware["gpu"] = "a card"
    table = report.results_table([one, other])
    assert "All measured" not in table and cells(table, "resnet32")[-1] == "a card"


def test_the_arms_of_the_benchmark_have_a_table_of_their_own() -> None:
    arms = [record(f"{arm}-{depth}", mean, task="benchmark") for arm, depth, mean in (
        ("plain", 8, 0.8), ("residual", 8, 0.81), ("plain", 56, 0.2), ("residual", 56, 0.9),
    )]  # fmt: skip
    assert "plain-8" not in report.results_table([record(), *arms])
    table = report.benchmark_table([record(), *arms, record("residual-14", task="benchmark")])
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:5]]
    assert rows[0][:6] == [
        "CIFAR-10-JPEG, test",
        "HOG + linear SVC: 60.0 %",
        "8",
        "80.0 ± 1.0 % (3)",
        "81.0 ± 1.0 % (3)",
        "+1.0",
    ]
    assert rows[1][:6] == ["", "", "14", "-", "85.0 ± 1.0 % (3)", "-"]
    assert rows[2][2:6] == ["56", "20.0 ± 1.0 % (3)", "90.0 ± 1.0 % (3)", "+70.0"]


def test_changes_of_a_training_are_told_by_their_gain() -> None:
    usual = record("net", 0.85, dataset="folds")
    changed = [record(f"net{report.CHANGE}{what}", mean, dataset="folds") for what, mean in (
        ("no dropout", 0.8), ("twice as wide", 0.86),
    )]  # fmt: skip
    table = report.ablations_table([record(), *changed, usual])
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()[2:5]]
    assert [row[3:6] for row in rows] == [
        ["as it is", "85.0 ± 1.0 % (3)", "-"],
        ["no dropout", "80.0 ± 1.0 % (3)", "-5.0"],
        ["twice as wide", "86.0 ± 1.0 % (3)", "+1.0"],
    ]
    assert {(row[0], row[1], row[2]) for row in rows} == {("vision", "folds, test", "net")}
    assert "resnet20" not in table
    results = report.results_table([*changed, usual])
    assert "85.0" in results and "80.0" not in results and "86.0" not in results
    fewer = [record(each.arm, each.mean, higher_is_better=False) for each in (usual, *changed)]
    table = report.ablations_table(fewer)  # errors
    assert [line.split("|")[6].strip() for line in table.splitlines()[2:5]] == ["-", "+5.0", "-1.0"]
    assert "+" not in report.ablations_table(changed)  # of what is not recorded there is no gain


MARKS = "\n\n".join("\n".join(report.markers(name)) for name in report.TABLES)


def page(folder: Path, text: str = f"# Title\n\n{MARKS}\n\nend\n") -> Path:
    path = folder / "README.md"
    path.write_text(text)
    return path


def test_the_page_is_refreshed_between_its_markers_only(tmp_path: Path) -> None:
    readme, folder = page(tmp_path), str(tmp_path / "results")
    report.save_record(record(), folder)
    report.save_record(record("plain-8", 0.7, task="benchmark"), folder)
    assert report.main([str(readme), "--results", folder, "--check"]) == 1
    assert readme.read_text().count("85.0") == 0  # a check changes nothing
    assert report.main([str(readme), "--results", folder]) == 0
    assert report.main([str(readme), "--results", folder, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n") and text.endswith("\n\nend\n")
    assert text.count("85.0 ± 1.0 %") == text.count("70.0 ± 1.0 %") == 1
    report.save_record(record(mean=0.9), folder)
    assert report.main([str(readme), "--results", folder, "--check"]) == 1
    assert report.main([str(readme), "--results", folder]) == 0
    assert "85.0" not in readme.read_text() and "90.0 ± 1.0 %" in readme.read_text()


BEGIN, END = report.markers("benchmark")


@pytest.mark.parametrize(
    "text", ["none", MARKS.replace(END, ""), MARKS.replace(BEGIN, END, 1), MARKS + BEGIN]
)
def test_a_page_without_its_markers_is_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(page(tmp_path, text)), "--results", str(tmp_path)]) == 2
    assert "README.md must hold" in capsys.readouterr().err


def test_a_missing_page_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "none.md")]) == 2
    assert capsys.readouterr().err.startswith("error: there is no page")
