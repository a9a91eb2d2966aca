"""One function in several processes: results in the order of the tasks, no orphans.

A worker is a plain Python process that reads tasks from its standard input and ends when that
ends, so it dies with its parent however that died, a moment after its last task.
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import IO, Any, Self

from apr_jax.errors import UserError

_PIPE = 1 << 19  # bytes between processes; what a user may have is 64 MB in all
_LENGTH = struct.Struct("<Q")
_START = "from apr_jax.text.workers import serve; serve()"


class WorkerError(UserError):
    """A worker process came to an end that nobody asked for."""


class Workers:
    """A pool of processes that call one function, started when needed. A context manager.

    With one worker there is no process: the function is called here.
    """

    def __init__(self, count: int, function: Callable[[Any], Any]) -> None:
        """Prepare for `count` processes; `function`, tasks and results must be picklable."""
        self._function = function
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        # Processes that wait for a task; None stands for one that is not started yet.
        self._free: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)
        self._threads = concurrent.futures.ThreadPoolExecutor(count)

    def __call__(self, task: Any) -> Any:
        """What the function makes of the task; what it raises is raised here."""
        if self._count == 1:
            return self._function(task)
        process = self._free.get()
        try:
            process = process or self._start()
            return _ask(process, task)
        finally:
            self._free.put(process)

    def ordered(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Each task with its result, in order; few tasks are taken before they are needed."""
        if self._count == 1:
            for task in tasks:
                yield task, self._function(task)
            return
        waiting: collections.deque[tuple[Any, concurrent.futures.Future[Any]]] = collections.deque()
        for task in tasks:
            waiting.append((task, self._threads.submit(self, task)))
            if len(waiting) > self._count + 1:
                first, future = waiting.popleft()
                yield first, future.result()
        for task, future in waiting:
            yield task, future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:  # a worker without a task has nothing to lose
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):  # what a dead one had not read
                    pipe.close()
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            "JAX_PLATFORMS": "cpu",  # what is done here needs no GPU, and may not take hold of one
            "NPROC": "1",  # which JAX takes for the number of cores: there is a worker for each
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
        except OSError as error:
            raise WorkerError(
                f"a worker process could not be started ({error.strerror}): use fewer workers"
            ) from error
        self._processes.append(process)
        assert process.stdout is not None
        # Fewer turns for a large answer. A system may know no such thing, or refuse it.
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE)
        _ask(process, self._function)
        return process


def default_count() -> int:
    """As many workers as this process may use cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def serve() -> None:
    """What a worker does: receive the function and say so, then answer task by task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent will see to it
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not come between answers
    function: Callable[[Any], Any] | None = None
    while (message := _receive(tasks)) is not None:
        try:
            if function is None:
                function, value = pickle.loads(message), None
            else:
                value = function(pickle.loads(message))
            answer = pickle.dumps((True, value))
        except Exception as error:
            answer = pickle.dumps((False, error))
        try:
            _send(answers, answer)
        except BrokenPipeError:
            return


def _ask(process: subprocess.Popen[bytes], message: Any) -> Any:
    """Send the message and wait for the answer; what went wrong there is raised here."""
    try:
        _send(process.stdin, pickle.dumps(message))
        answer = _receive(process.stdout)
    except BrokenPipeError:
        answer = None
    if answer is None:
        raise WorkerError(f"{_end_of(process)}: run the same command again, with fewer workers")
    succeeded, value = pickle.loads(answer)
    if succeeded:
        return value
    raise value


def _send(pipe: IO[bytes] | None, data: bytes) -> None:
    assert pipe is not None
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes] | None) -> bytes | None:
    """The next message, or None when the other side is gone."""
    assert pipe is not None
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    data = pipe.read(size)
    return data if len(data) == size else None


def _end_of(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    reason = signal.Signals(-code).name if code < 0 else f"code {code}"
    return f"a worker process ended with {reason}, as when memory runs out"
