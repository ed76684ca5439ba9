"""Independent jobs over independent single-thread processes.

A server imports once what all need; a worker is forked from it and takes one job after another. One
that dies takes only the job it held with it; a parent that dies takes its workers along.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

Work = Callable[[Any, Any], Any]  # (settings, job) -> result; a module-level function


class Failure(str):
    """Why a job has no result: one line, and a traceback where there is one."""


class _Worker:
    def __init__(self, work: Work, settings: Any, fatal: type[Exception]) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, other = context.Pipe()
        arguments = (work, settings, fatal, other)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        other.close()  # so that a dead worker is seen as the end of its pipe
        self.job: Any = None

    def give(self, job: Any) -> None:
        self.job = job
        self.connection.send(job)

    def result(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            memory = ", which the system sends when memory runs out" if code == -9 else ""
            return Failure(f"its process died ({how}{memory})")

    def stop(self) -> None:
        self.connection.close()  # an idle worker ends by this
        if self.job is not None:
            self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def spread(
    work: Work,
    settings: Any,
    take: Callable[[], Any],
    size: int,
    fatal: type[Exception],
    imports: Sequence[str] = (),
) -> Iterator[tuple[Any, Any]]:
    """Run jobs on up to `size` processes; yield each with its result or `Failure` as it ends.

    `take()` gives the next job, or None when none is ready now: it is asked again after every job
    that ends, so that jobs may wait for others. `imports` are the modules that are imported once
    for all. Leaving the loop in any way ends every process. A job that raises `fatal` stops all the
    others, and the exception is raised here.
    """
    forkserver.set_forkserver_preload(list(imports))
    # Ctrl-C is the parent's to handle: the server, and all it forks, inherit that it is ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, before)
    workers: list[_Worker] = []
    try:
        while True:
            idle = [worker for worker in workers if worker.job is None]
            while len(workers) - len(idle) < size and (job := take()) is not None:
                if not idle:
                    workers += (idle := [_Worker(work, settings, fatal)])
                idle.pop().give(job)
            busy = {worker.connection: worker for worker in workers if worker.job is not None}
            if not busy:
                return
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                job, worker.job = worker.job, None
                result = worker.result()
                if not worker.process.is_alive():
                    workers.remove(worker)
                    worker.stop()
                if isinstance(result, fatal):
                    raise result
                yield job, result
    finally:
        for worker in workers:
            worker.stop()


def _serve(work: Work, settings: Any, fatal: type[Exception], connection: Connection) -> None:
    """The life of a worker: jobs in, results out, until the pipe ends."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            result = work(settings, job)
        except fatal as error:
            result = error
        except Exception as error:
            result = Failure(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        connection.send(result)


def _leave_with_parent() -> None:
    """No orphans: end at once when the parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
