"""Jobs over processes: errors, deaths, interruptions."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tasks._benchmark.pool import Failure, spread


def work(settings, job):
    """Runs in a worker."""
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "raise":
        raise RuntimeError("broken arm")
    if job == "input":
        raise ValueError("no such folder; give one")
    if job == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if job == "sleep":
        time.sleep(60)
    return settings, job, os.getpid()


def jobs(*names):
    left = list(names)
    return lambda: left.pop(0) if left else None


def test_a_worker_takes_many_jobs_and_pays_its_start_once():
    results = dict(spread(work, "settings", jobs("a", "b", "c", "d"), 1, ValueError))
    assert [results[name][:2] for name in "abcd"] == [("settings", name) for name in "abcd"]
    assert len({results[name][2] for name in "abcd"}) == 1


def test_a_dead_worker_and_an_error_cost_one_job_each():
    results = dict(spread(work, None, jobs("a", "die", "b", "raise", "c"), 2, ValueError))
    assert [isinstance(results[name], tuple) for name in "abc"] == [True] * 3
    assert isinstance(results["die"], Failure) and "signal 9" in results["die"]
    assert results["raise"].startswith("RuntimeError: broken arm\nTraceback")
    assert "in work" in results["raise"]


def test_an_interruption_is_the_parents_to_handle():
    (done,) = dict(spread(work, None, jobs("interrupt"), 1, ValueError)).values()
    assert done[1] == "interrupt"


def test_what_all_need_is_imported_once_for_all(tmp_path):
    (tmp_path / "tests_heavy.py").write_text(
        "import os\n"
        "imported = os.getpid()\n"
        "def work(settings, job):\n"
        "    return imported, os.getpid()\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from tasks._benchmark.pool import spread\n"
        "from tests_heavy import work\n"
        "if __name__ == '__main__':\n"
        "    left = ['a', 'b']\n"
        "    take = lambda: left.pop(0) if left else None\n"
        "    for _, pids in spread(work, None, take, 2, ValueError, ['tests_heavy']):\n"
        "        print(*pids)\n"
    )
    path = os.pathsep.join([os.getcwd(), str(tmp_path)])
    shown = subprocess.run(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    ).stdout
    (a, worker), (b, other) = (line.split() for line in shown.splitlines())
    assert a == b and a not in (worker, other)


def test_bad_input_stops_everything():
    with pytest.raises(ValueError, match="no such folder; give one"):
        dict(spread(work, None, jobs("input", "sleep"), 2, ValueError))


def test_jobs_may_wait_for_others():
    order, state = [], {"first": False}
    left = ["first", "second"]

    def take():
        if left and (left[0] == "first" or state["first"]):
            return left.pop(0)
        return None

    for job, _ in spread(work, None, take, 2, ValueError):
        order.append(job)
        state["first"] = True
    assert order == ["first", "second"]


SCRIPT = """
import sys
from multiprocessing import active_children
from tasks._benchmark.pool import spread
from tests_pool_work import work
if __name__ == "__main__":
    left = ["a", "sleep"]
    for job, result in spread(work, None, lambda: left.pop(0) if left else None, 2, ValueError):
        print(result[2], *(child.pid for child in active_children()), flush=True)
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def hear_interrupts():
    """A test run in the background of a shell is deaf to SIGINT, and so would its children be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads process states from /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path, how):
    (tmp_path / "tests_pool_work.py").write_text(
        "import os, time\n"
        "def work(settings, job):\n"
        "    if job == 'sleep': time.sleep(60)\n"
        "    return settings, job, os.getpid()\n"
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([os.getcwd(), str(tmp_path)])
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(set(pids)) == 2 and any(map(alive, pids))
    parent.send_signal(how)
    parent.wait(20)
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))
