"""The main job, end to end on small data: arms, records, reports, interruption, resuming."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import soundfile

import resbackbones as rb
from resbackbones.report import load_records
from resbackbones.train.checkpoint import locked
from tasks import benchmark
from tasks._benchmark import arms
from tasks._benchmark.pool import Failure
from tasks._running import run

KEYS = {
    "domain", "arm", "depth", "seed", "parameters", "macs", "metric", "value", "train_loss",
    "seconds", "gradient_ratio", "gradient_profile", "dataset", "about_data", "split", "test_rows",
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small sets: images in Parquet, recordings in class folders, texts in JSON Lines."""
    root = tmp_path_factory.mktemp("small")
    random = np.random.default_rng(0)

    def image(label: int) -> dict:
        pixels = random.integers(0, 100, (8, 8), dtype=np.uint8)
        pixels[:, 4 * label : 4 * label + 4] += 100
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, format="png")
        return {"bytes": buffer.getvalue(), "path": None}

    (root / "images").mkdir()
    for split, count in (("train", 60), ("test", 20)):
        labels = [row % 2 for row in range(count)]
        rows = {"image": [image(label) for label in labels], "label": labels}
        datasets.Dataset.from_dict(rows).to_parquet(root / "images" / f"{split}.parquet")
    for label, pitch in (("low", 300), ("high", 2000)):
        for split, count in (("train", 20), ("test", 6)):
            folder = root / "sounds" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                tone = np.sin(2 * np.pi * pitch * np.arange(4000) / 16000)
                noise = random.standard_normal(4000) / 10
                soundfile.write(folder / f"{index}.wav", 0.3 * (tone + noise), 16000)
    (root / "texts").mkdir()
    for split, count in (("train", 60), ("test", 20)):
        lines = [
            json.dumps({"text": f"{('who', 'where')[i % 2]} is it {i}", "label": i % 2})
            for i in range(count)
        ]
        (root / "texts" / f"{split}.jsonl").write_text("\n".join(lines))
    return root


def of(small: Path, *arguments: object) -> list[str]:
    """The command line of a small run."""
    data = ["--vision", small / "images", "--speech", small / "sounds", "--text", small / "texts"]
    return [*map(str, data), *map(str, arguments)]


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_a_whole_run(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    given = of(small, "--depths", 8, "--seeds", 2, "--epochs", 1, "--workers", 2, "--record")
    run(benchmark.main, benchmark.Config, [*given, "--output", "out"])
    printed = capsys.readouterr().out
    found = records(Path("out"))
    assert len(found) == 3 + 3 * 2 * 2  # a baseline, and two arms of two seeds, a domain
    assert all(set(record) >= KEYS for record in found)
    for domain in ("vision", "speech", "text"):
        assert re.search(rf"^{domain.capitalize()} \(.*depth 8", printed, re.M)
        plain, residual = (
            {r["seed"]: r for r in found if (r["domain"], r["arm"]) == (domain, arm)}
            for arm in ("plain", "residual")
        )
        assert plain.keys() == residual.keys() == {0, 1}
        assert plain[0]["parameters"] == residual[0]["parameters"]  # the comparison is fair
        assert plain[0]["macs"] == residual[0]["macs"]
        assert len(plain[0]["gradient_profile"]) == 3

    page, report = Path("out/report.html").read_text(), Path("out/report.md").read_text()
    assert page.count("<svg") == 9  # three plots, a panel per domain
    assert not re.search(r"(src|href)=.http|url\(.?http|<script|<link", page)  # opens from disk
    assert Path("out/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "| vision |" in report and "**The rule.**" in report
    made = load_records("results")
    assert {r.arm for r in made} == {"plain-8", "residual-8"} and len(made) == 6
    assert all(r.baseline and len(r.seeds) == 2 and r.held_out for r in made)

    # Going on with a finished run trains nothing; other settings are refused.
    run(benchmark.main, benchmark.Config, [*given, "--output", "out", "--resume"])
    assert "15 arms are recorded" in capsys.readouterr().out
    assert records(Path("out")) == found
    with pytest.raises(SystemExit) as stop:
        run(benchmark.main, benchmark.Config, [*given, "--output", "out"])
    assert stop.value.code == 2 and "already holds a run" in capsys.readouterr().err
    changed = [*of(small, "--epochs", 2), "--output", "out", "--resume"]
    with pytest.raises(SystemExit) as stop:
        run(benchmark.main, benchmark.Config, changed)
    assert stop.value.code == 2 and "epochs = 1, not 2" in capsys.readouterr().err


def test_an_interrupted_run_keeps_what_is_done_and_resumes(small: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tasks.benchmark", "--vision", str(small / "images")]
    command += ["--domains", "vision", "--depths", "8", "--seeds", "3", "--workers", "1"]
    command += ["--output", str(tmp_path / "out"), "--epochs", "30"]
    path = tmp_path / "out" / "records.jsonl"
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell is deaf to SIGINT, and so would its child be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until = time.monotonic() + 400
    while time.monotonic() < until and not (path.exists() and path.read_text().count("\n") >= 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped by SIGINT" in errors and f"--output {tmp_path}/out --resume" in errors
    assert "Traceback" not in errors
    kept = records(tmp_path / "out")
    assert 2 <= len(kept) < 7
    assert "Unfinished" in (tmp_path / "out" / "report.md").read_text()

    with path.open("a") as file:
        file.write('{"domain": "vision", "arm"')  # as a power cut would leave it
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert len(records(tmp_path / "out")) == 7
    assert records(tmp_path / "out")[: len(kept)] == kept
    assert "Unfinished" not in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--depths", "9"], "6 n + 2 layers: 8, 14, 20, … 1202"),
        (["--depths", "1208"], "--depths has 1208"),
        (["--quick", "--record"], "leave one of them out"),
        (["--depths"], "--depths is empty"),
        (["--seeds", "0"], "--seeds is 0; use 1 or more"),
        (["--domains", "vision", "--text", "x"], "--domains leaves text out"),
        (["--vision", "nowhere", "--domains", "vision"], "there is no file or folder"),
        (["--output", "file/out"], "cannot write to file/out"),
        (["--resume"], "there is no run in"),
        (
            ["--vision", "nowhere", "--device", "cuda"],
            "needs a GPU and there is none; use --device auto",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    no_gpu: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    Path("file").write_text("")
    with pytest.raises(SystemExit) as stop:
        run(benchmark.main, benchmark.Config, arguments)
    assert stop.value.code == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ") and sentence in error and "\n" not in error
    assert "--device" not in arguments or not Path("runs").exists()  # it is refused first


def test_a_second_job_on_a_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path), pytest.raises(SystemExit) as stop:
        run(benchmark.main, benchmark.Config, ["--output", str(tmp_path)])
    assert stop.value.code == 2
    assert "another process is running in" in capsys.readouterr().err
    assert not (tmp_path / "records.jsonl").exists()


def test_the_workers_are_told_the_device_that_is_there(
    tmp_path: Path, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[arms.Settings] = []

    def spread(work: object, settings: arms.Settings, *_: object) -> list:
        told.append(settings)
        return []

    monkeypatch.setattr(benchmark, "spread", spread)
    with pytest.raises(SystemExit):  # no arm has a result
        benchmark.main(benchmark.Config(output=tmp_path / "out"))
    assert [settings.device for settings in told] == ["cpu"]


def test_where_the_baseline_fails_its_nets_are_left_out(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job = arms.run

    def spread(work: object, settings: arms.Settings, take: Callable, *_: object) -> Iterator:
        while (job := take()) is not None:
            broken = job == arms.Job("vision", "baseline")
            yield job, Failure("broken") if broken else run_job(settings, job)

    monkeypatch.setattr(benchmark, "spread", spread)
    given = of(small, "--domains", "text", "vision", "--depths", 8, "--seeds", 1, "--epochs", 1)
    del given[2:4]  # no speech
    with pytest.raises(SystemExit) as stop:
        run(benchmark.main, benchmark.Config, [*given, "--output", str(tmp_path)])
    assert stop.value.code == 1 and len(records(tmp_path)) == 3
    shown = capsys.readouterr()
    assert "failed: vision baseline: broken; its nets are left out" in shown.err
    assert "3 of 6 arms are missing (vision baseline, " in shown.err
    assert "[3/6] text residual depth 8 seed 0: " in shown.out


@pytest.mark.gpu
def test_a_gpu_trains_every_domain(small: Path, tmp_path: Path) -> None:
    given = of(small, "--depths", 8, "--seeds", 1, "--epochs", 1, "--workers", 1)
    run(benchmark.main, benchmark.Config, [*given, "--output", str(tmp_path), "--device", "cuda"])
    assert len(records(tmp_path)) == 9


@pytest.mark.parametrize("domain", ["vision", "speech", "text"])
@pytest.mark.parametrize("depth", [8, 20, 56])
def test_plain_and_residual_nets_are_twins(domain: str, depth: int) -> None:
    plain, residual = (
        rb.backbone(arms.spec(domain, depth), skip=skip) for skip in ("none", "identity")
    )
    assert plain.parameter_difference == 0
    assert sum(len(block.branch) for _, block in plain.blocks) + 2 == depth
    assert rb.count_parameters(plain) == rb.count_parameters(residual)


def test_the_baseline_comes_first_and_seeds_stay_whole() -> None:
    jobs = benchmark.plan(("vision", "text"), (8, 56), 2)
    assert [str(job) for job in jobs[:3]] == [
        "text baseline",
        "vision baseline",
        "text plain depth 56 seed 0",
    ]
    assert [job.seed for job in jobs[2:]] == [0] * 8 + [1] * 8


def test_help_tells_the_rule() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "tasks.benchmark", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    ).stdout
    assert "Student's t" in shown and "--quick" in shown and "usage: python -m tasks" in shown
