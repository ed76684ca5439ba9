"""Records, the tables made from them, and the plots."""

import dataclasses
import json
import subprocess
import sys

import pytest

import resbackbones
from resbackbones import report
from resbackbones.errors import InputError


def record(**changes):
    given = {
        "task": "vision",
        "dataset": "CIFAR-10-JPEG",
        "protocol": "official split",
        "arm": "resnet20",
        "metric": "accuracy",
        "seeds": [0, 1, 2],
        "values": [0.84, 0.86, 0.85],
        "seconds": [10.0, 12.0, 11.0],
        "parameters": 269_722,
        "macs": 40_551_040,
        "baseline": ("HOG + linear SVC", 0.6),
    }
    return report.result_record(**(given | changes))


def test_a_record_has_the_agreed_fields_in_order():
    names = (
        "task dataset protocol split arm metric higher_is_better seeds values mean sd baseline "
        "parameters macs seconds hardware versions commit command held_out skipped"
    )
    assert [entry.name for entry in dataclasses.fields(report.Record)] == names.split()


def test_a_record_finds_out_the_rest_by_itself():
    made = record()
    assert made.split == "test" and made.higher_is_better is True
    assert made.mean == pytest.approx(0.85)
    assert made.sd == pytest.approx(0.01)  # ddof 1; ddof 0 would give 0.00816
    assert made.baseline == {"name": "HOG + linear SVC", "value": 0.6}
    assert made.hardware["cores"] >= 1 and made.hardware["cpu"]
    assert made.versions["resbackbones"] == resbackbones.__version__
    assert {"python", "torch", "transformers", "scikit-learn"} <= set(made.versions)
    assert made.command.startswith("python ")
    assert record(seeds=[0], values=[0.5], seconds=[1.0]).sd is None


def test_the_commit_is_that_of_this_package_or_nothing(monkeypatch, tmp_path):
    outside = tmp_path / "resbackbones" / "report.py"
    outside.parent.mkdir()
    outside.write_text("")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(report, "__file__", str(outside))
    assert report.commit() is None  # inside a checkout that does not track it


def test_numbers_that_must_not_be_published_are_refused():
    with pytest.raises(ValueError, match="3 seeds, 1 values"):
        record(values=[0.5])
    with pytest.raises(ValueError, match="finite"):
        record(values=[0.5, float("nan"), 0.5])


def test_records_go_to_disk_and_back(tmp_path):
    made = record(dataset="Speech Commands, speaker split", task="speech")
    path = report.save_record(made, tmp_path)
    assert path == tmp_path / "speech" / "Speech-Commands--speaker-split-resnet20.json"
    assert json.loads(path.read_text())["mean"] == made.mean
    other = report.save_record(record(), tmp_path)
    assert report.load_records(tmp_path) == [made, record()]
    assert sorted(tmp_path.rglob("*.*")) == sorted([path, other])  # no scratch file stays
    assert report.load_records(tmp_path / "nothing") == []


def test_a_spoilt_record_is_named(tmp_path):
    path = report.save_record(record(), tmp_path)
    content = json.loads(path.read_text())
    del content["commit"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"resnet20\.json is not a result record: commit"):
        report.load_records(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"resnet20\.json is not valid JSON"):
        report.load_records(tmp_path)


def test_an_unwritable_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the record"):
        report.write_record(record(), tmp_path / "file" / "record.json")


def test_the_table_says_what_the_records_say():
    table = report.results_table([record(arm="plain-56"), record(arm="plain-8")])
    assert table.index("plain-8") < table.index("plain-56")
    assert "85.0 ± 1.0 % (3)" in table and "HOG + linear SVC: 60.0 %" in table
    assert "270 k" in table and "40.6 M" in table and "11 s" in table
    assert len({len(line) for line in table.splitlines()}) == 1
    lower = record(metric="wer", higher_is_better=False, baseline=None)
    assert "wer (lower)" in report.results_table([lower])
    assert report.results_table([]) == "No results are recorded yet."


def test_a_bar_in_a_cell_does_not_break_the_table():
    assert r"a\|b" in report.markdown_table(["x"], [["a|b"]])


def page(folder, text=f"# Title\n\n{report.BEGIN}\n{report.END}\n\nend\n"):
    path = folder / "README.md"
    path.write_text(text)
    return path


def test_the_page_is_refreshed_between_its_markers_only(tmp_path):
    readme, folder = page(tmp_path), str(tmp_path / "results")
    report.save_record(record(), folder)
    assert report.main([str(readme), "--results", folder, "--check"]) == 1
    assert readme.read_text().count("85.0") == 0  # a check changes nothing
    assert report.main([str(readme), "--results", folder]) == 0
    assert report.main([str(readme), "--results", folder, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n") and text.endswith("\n\nend\n") and "85.0 ± 1.0 %" in text
    report.save_record(record(values=[0.9, 0.9, 0.9]), folder)
    assert report.main([str(readme), "--results", folder, "--check"]) == 1
    assert report.main([str(readme), "--results", folder]) == 0
    assert "85.0" not in readme.read_text() and "90.0 ± 0.0 %" in readme.read_text()


@pytest.mark.parametrize("text", ["no markers", f"{report.END} {report.BEGIN}", report.BEGIN])
def test_a_page_without_its_markers_is_refused(tmp_path, text, capsys):
    assert report.main([str(page(tmp_path, text)), "--results", str(tmp_path)]) == 2
    assert "README.md must hold" in capsys.readouterr().err


def test_a_missing_page_is_refused(tmp_path, capsys):
    assert report.main([str(tmp_path / "none.md")]) == 2
    assert capsys.readouterr().err.startswith("error: there is no page")


def figure():
    lines = [
        report.Line("plain", [8, 56], [0.9, 0.2], [0.01, 0.3]),
        report.Line("residual", [8, 56], [0.9, 0.95], [None, None]),
    ]
    panels = [
        report.Panel("accuracy", "depth", "%", lines, {"baseline": 0.8}, x_ticks=[8, 56]),
        report.Panel("loss", "depth", "nats", lines, log=True, y_limits=(0.01, 2)),
    ]
    return report.draw(panels)


def test_a_figure_holds_what_it_was_given():
    drawn = figure()
    first, second = drawn.axes
    assert [len(axes.get_lines()) > 1 for axes in drawn.axes] == [True, True]
    assert list(first.get_xticks()) == [8, 56] and second.get_yscale() == "log"
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.texts] == ["plain", "residual", "baseline"]
    # The bar of 0.2 ± 0.3 must not reach zero on a logarithmic axis.
    (bars,) = [line for line in second.collections if len(line.get_segments()) == 2]
    assert min(point[1] for segment in bars.get_segments() for point in segment) > 0


def test_figures_become_files_and_elements(tmp_path):
    path = report.save_figure(figure(), tmp_path / "new" / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    svg = report.inline_svg(figure(), 'accuracy "here"')
    assert svg.startswith('<svg role="img" aria-label="accuracy &quot;here&quot;"')
    assert svg.endswith("</svg>") and ">residual</text>" in svg
    assert svg == report.inline_svg(figure(), 'accuracy "here"')


def test_plotting_leaves_pyplot_alone():
    code = (
        "import sys; from resbackbones import report as r;"
        "r.inline_svg(r.draw([r.Panel('t', 'x', 'y', [r.Line('plain', [1], [1.0])])]), 'd');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
