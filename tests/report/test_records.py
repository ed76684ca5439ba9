"""Records: what a published number rests on, to the disk and back."""

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import resbackbones
from resbackbones import report
from resbackbones.errors import InputError
from resbackbones.report import records


def record(**changes: Any) -> report.Record:
    given: dict[str, Any] = {
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


def test_a_record_has_the_agreed_fields_in_order() -> None:
    names = (
        "task dataset protocol split arm metric higher_is_better seeds values mean sd baseline "
        "parameters macs seconds hardware versions commit command held_out skipped published "
        "sample figures"
    )
    assert [entry.name for entry in dataclasses.fields(report.Record)] == names.split()


def test_a_record_finds_out_the_rest_by_itself() -> None:
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


def test_held_out_rows_are_a_digest_in_any_order() -> None:
    made = record(held_out=[11, 5])
    assert made.held_out == record(held_out=[5, 11]).held_out == report.rows_digest([5, 11])
    assert made.held_out is not None and made.held_out["rows"] == 2
    assert len(made.held_out["sha256"]) == 16
    assert made.held_out != record(held_out=[5, 12]).held_out
    assert record(held_out=made.held_out).held_out == made.held_out
    assert record().held_out is record(held_out=[]).held_out is None


def test_the_commit_is_that_of_this_package_or_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    outside = tmp_path / "resbackbones" / "records.py"
    outside.parent.mkdir()
    outside.write_text("")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(records, "__file__", str(outside))
    assert report.commit() is None  # inside a checkout that does not track it
    measured = tmp_path / "results" / "one.json"
    measured.parent.mkdir()
    measured.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y.z"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "begin"], check=True)
    name = report.commit()
    assert name is not None and len(name) == 12
    measured.write_text("a record written before this one")
    assert report.commit() == name
    outside.write_text("# changed")
    assert report.commit() == f"{name}-dirty"


def test_numbers_that_must_not_be_published_are_refused() -> None:
    with pytest.raises(ValueError, match="3 seeds, 1 values"):
        record(values=[0.5])
    with pytest.raises(ValueError, match="finite"):
        record(values=[0.5, float("nan"), 0.5])


def test_records_go_to_disk_and_back(tmp_path: Path) -> None:
    made = record(dataset="Speech Commands, speaker split", task="speech", held_out=[3])
    path = report.save_record(made, tmp_path)
    assert path == tmp_path / "speech" / "Speech-Commands--speaker-split-resnet20.json"
    assert json.loads(path.read_text())["mean"] == made.mean
    other = report.save_record(record(), tmp_path)
    assert report.load_records(tmp_path) == [made, record()]
    assert sorted(tmp_path.rglob("*.*")) == sorted([path, other])  # no scratch file stays
    assert report.load_records(tmp_path / "nothing") == []


def test_a_record_from_before_a_field_was_added_still_loads(tmp_path: Path) -> None:
    path = report.save_record(record(), tmp_path)
    content = json.loads(path.read_text())
    for later in ("held_out", "skipped", "published", "sample", "figures"):
        del content[later]
    path.write_text(json.dumps(content))
    assert report.load_record(path) == record()


def test_what_others_published_outlives_a_new_run(tmp_path: Path) -> None:
    figure = {"name": "WRN-28-10", "value": 0.96, "source": "arXiv:1605.07146"}
    report.save_record(record(published=figure), tmp_path)
    path = report.save_record(record(values=[0.9, 0.9, 0.9]), tmp_path)
    kept = report.load_record(path)
    assert kept.published == figure and kept.mean == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"commit": ...}, "commit"), ({"comit": "abc"}, "comit")],
    ids=["missing", "unknown"],
)
def test_a_spoilt_record_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = report.save_record(record(), tmp_path)
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: x for name, x in content.items() if x is not ...}))
    with pytest.raises(InputError, match=rf"resnet20\.json is not a result record: {named} "):
        report.load_records(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    path = report.save_record(record(), tmp_path)
    path.write_text(text)
    with pytest.raises(InputError, match=r"resnet20\.json is not"):
        report.load_records(tmp_path)


def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the record"):
        report.write_record(record(), tmp_path / "file" / "record.json")
