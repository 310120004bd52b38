"""The preloaded runner: imports once what running a task of Airflow needs; each task is then a forked child.

`airkafka-worker --preload` starts it (`airkafka-task serve`), watches it and starts it again. It owns its children, no
more.

- stdin is the listening socket; it is the worker's, so that what connects while we are away waits for the next of us.
- stdout is a pipe to the worker, a line each: `ready ...` when all is imported, `retiring ...` when we take no more.
- A client is the command that the worker has started. It sends its argv, environment, directory and standard streams,
  and stands for the child: the child enters its process group, bears its cookie, and what ends the one ends the other.
- A child tells its exit code to its client by itself, over the connection that it keeps. Should we be gone by then,
  nobody misses us. What it cannot tell, a signal that killed it, is told by us.

One request: four bytes of length, then fields with a NUL behind each: kind, directory, process group, count of
arguments, the arguments, the environment. The answers are lines: `take` (to which the client says `go`, and only then
there is a child) or `no REASON`; `pid N`, or `no REASON` once more; `exit N` or `signal N`.

Single-threaded, for a child of a process with threads has locks that nobody will open.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import NamedTuple

# The variable that tells which processes belong to a command. The worker starts us with as many dashes as fit a cookie.
COOKIE = "AIRKAFKA_COMMAND_ID"
# A variable that begins so, and is not as it was when we imported, may change what the imports would have made of it.
TELLING = ("AIRFLOW", "PYTHON", "LD_", "VIRTUAL_ENV")
# After so many children, or when we have grown by so many bytes, we make room for a fresh one.
MOST_CHILDREN = int(os.environ.get("AIRKAFKA_RUNNER_TASKS", "2000"))
MOST_GROWTH = 64 << 20
# Signals that mean something to us.
HANDLED = (signal.SIGCHLD, signal.SIGTERM)
# Seconds that a client may take for its request, and that a child without a client has between TERM and KILL.
PATIENCE = 10

# What a task needs, by version of Airflow; what is not there in this one is left out.
MODULES_2 = """
airflow.cli.cli_parser airflow.cli.commands.task_command airflow.decorators airflow.jobs.job
airflow.jobs.local_task_job_runner airflow.models.dagbag airflow.models.taskinstance airflow.operators.bash
airflow.operators.empty airflow.operators.python airflow.sensors.base airflow.serialization.serialized_objects
airflow.task.task_runner.standard_task_runner airflow.utils.dot_renderer airflow.utils.log.file_task_handler
"""
MODULES_3 = """
airflow.dag_processing.bundles.manager airflow.dag_processing.dagbag airflow.executors.base_executor
airflow.executors.workloads airflow.models.dagbag airflow.plugins_manager airflow.providers.standard.operators.bash
airflow.providers.standard.operators.empty airflow.providers.standard.operators.python
airflow.providers.standard.sensors.bash airflow.providers_manager airflow.sdk airflow.sdk._shared.logging.factory
airflow.sdk._shared.logging.remote airflow.sdk.api.client airflow.sdk.definitions.connection
airflow.sdk.execution_time.coordinator airflow.sdk.execution_time.supervisor airflow.sdk.execution_time.task_runner
airflow.sdk.log encodings.idna setproctitle
"""


class Child(NamedTuple):
    """A forked child, and who waits for it."""

    conn: socket.socket
    group: int


class Request(NamedTuple):
    """What a client wants to have run."""

    cwd: bytes
    group: int
    argv: list[bytes]
    env: dict[bytes, bytes]


class Refused(Exception):
    """A request that is not taken; the client then does without us."""


def preload() -> None:
    """Imports, and gives back what importing has opened."""
    from airflow import __version__

    is_2 = __version__.startswith("2.")
    more = os.environ.get("AIRKAFKA_PRELOAD_MODULES", "").replace(",", " ").split()
    for name in (MODULES_2 if is_2 else MODULES_3).split():
        with suppress(ImportError):
            importlib.import_module(name)
    for name in more:
        importlib.import_module(name)
    if is_2:
        from airflow.cli import cli_parser

        cli_parser.get_parser()
    else:
        with suppress(Exception):  # it keeps what verifies certificates, which takes longer than all else in a task
            from airflow.sdk.api.client import Client

            Client(base_url="http://localhost/", token="").close()
    from airflow import settings

    if getattr(settings, "engine", None) is not None:
        settings.engine.dispose()
    with suppress(Exception):
        settings.dispose_orm(do_log=False)


def descriptors() -> set[str]:
    """Those that are open, but for the standard streams."""
    with os.scandir("/proc/self/fd") as entries:
        names = {entry.name for entry in entries}
    # The one that the list was read with is closed by now.
    return {name for name in names - {"0", "1", "2"} if os.path.exists(f"/proc/self/fd/{name}")}


def check(before: set[str]) -> list[str]:
    """What there is, and was not before, that a child must not have from us."""
    wrong = [f"thread {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
    count = len(os.listdir("/proc/self/task"))
    if count > 1 and not wrong:
        wrong.append(f"{count - 1} thread(s) that Python does not know")
    for name in sorted(descriptors() - before):
        wrong.append(f"descriptor {name} ({os.readlink(f'/proc/self/fd/{name}')})")
    return wrong


class Cookie:
    """The cookie where other processes see it: in the memory that /proc/PID/environ shows."""

    def __init__(self) -> None:
        get = ctypes.CDLL(None).getenv
        get.restype = ctypes.c_void_p
        # The string in the block that the kernel has made, as long as nobody has set the variable anew.
        self._at = get(COOKIE.encode())
        self._size = len(os.environ.get(COOKIE, ""))

    def set(self, value: bytes) -> None:
        """Puts another one in its place."""
        if self._at is not None and len(value) <= self._size:
            ctypes.memmove(self._at, value.ljust(self._size, b"\0"), self._size)


class Runner:
    """The loop."""

    def __init__(self, listener: socket.socket, tell: int, cookie: Cookie) -> None:
        self._listener: socket.socket | None = listener
        self._tell = tell
        self._cookie = cookie
        self._children: dict[int, Child] = {}
        self._left: dict[int, float] = {}
        self._forked = 0
        self._size = resident()
        self._env = dict(os.environb)
        self._wakeup, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._own = [self._wakeup, wakeup, tell]
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.retire("told to"))

    def say(self, line: str) -> None:
        """A line for the worker."""
        with suppress(OSError):
            os.write(self._tell, f"{line}\n".encode())

    def retire(self, why: str) -> None:
        """Takes no more; ends when the last child has."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.say(f"retiring {why}")

    def run(self) -> None:
        """Until retired, and the last child has ended."""
        while self._listener is not None or self._children:
            ready = self._wait()
            self._reap()
            if self._tell in ready:
                self._clear_up()
                self.retire("the worker is gone")
            for pid, child in list(self._children.items()):
                if child.conn.fileno() in ready and self._is_gone(child):
                    self._end(pid, child)
            if self._listener is not None and self._listener.fileno() in ready:
                self._accept()

    def _clear_up(self) -> None:
        """The socket and its directory are the worker's, who cannot any more."""
        if self._listener is not None:
            path = self._listener.getsockname()
            with suppress(OSError):
                os.unlink(path)
                os.rmdir(os.path.dirname(path))

    def _wait(self) -> set[int]:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if self._listener is not None:
            poll.register(self._listener.fileno(), select.POLLIN)
            poll.register(self._tell, 0)  # an error tells that the other end is closed
        for pid, child in self._children.items():
            if pid not in self._left:
                poll.register(child.conn.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poll.poll(1000 if self._left else 30000)}
        with suppress(BlockingIOError):
            os.read(self._wakeup, 4096)
        return ready

    @staticmethod
    def _is_gone(child: Child) -> bool:
        try:
            return child.conn.recv(64, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _end(self, pid: int, child: Child) -> None:
        """Its client is gone: nobody waits for it, and nobody would end it."""
        if pid not in self._left:
            self._left[pid] = time.monotonic()
            with suppress(OSError):
                os.killpg(child.group, signal.SIGTERM)

    def _reap(self) -> None:
        for pid, since in self._left.items():
            if time.monotonic() - since > PATIENCE:
                with suppress(OSError):
                    os.killpg(self._children[pid].group, signal.SIGKILL)
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            self._left.pop(pid, None)
            if child is not None:
                code = os.waitstatus_to_exitcode(status)
                with suppress(OSError):
                    child.conn.sendall(b"exit %d\n" % code if code >= 0 else b"signal %d\n" % -code)
                child.conn.close()
        growth = resident() - self._size
        if growth > MOST_GROWTH and self._forked:  # a fresh one would not be smaller otherwise
            self.retire(f"grown by {growth >> 20} MiB")

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            conn, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        conn.settimeout(PATIENCE)
        fds: list[int] = []
        try:
            uid = struct.unpack("3i", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid != os.getuid():
                raise Refused(f"user {uid} is not user {os.getuid()}")
            fields = receive(conn, fds)
            if fields[0] == b"ping":
                conn.sendall(b"pong\n")
                return
            request = self._read(fields)
            if len(fds) != 3:
                raise Refused(f"{len(fds)} descriptors have come, not 3")
            conn.sendall(b"take\n")
            if conn.recv(3) != b"go\n":
                return
            self._fork(conn, request, fds)
        except Refused as e:
            with suppress(OSError):
                conn.sendall(f"no {e}\n".encode())
        except OSError:
            pass  # the client is gone
        finally:
            for fd in fds:
                os.close(fd)
            if all(child.conn is not conn for child in self._children.values()):
                conn.close()

    def _read(self, fields: list[bytes]) -> Request:
        try:
            kind, cwd, group, count, *rest = fields
            argv, pairs = rest[: int(count)], rest[int(count) :]
            env = dict(pair.partition(b"=")[::2] for pair in pairs)
            request = Request(cwd, int(group), argv, env)
        except ValueError as e:
            raise Refused(f"the request cannot be read: {e}") from None
        if kind != b"run" or request.group <= 1 or not argv:
            raise Refused("the request cannot be read")
        for name in sorted({*env, *self._env}):
            if name.decode(errors="replace").startswith(TELLING) and env.get(name) != self._env.get(name):
                raise Refused(f"the command has another {name.decode(errors='replace')}")
        return request

    def _fork(self, conn: socket.socket, request: Request, fds: list[int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until a child has handlers of its own
        try:
            pid = os.fork()
        except OSError as e:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            raise Refused(f"it cannot fork: {e}") from None
        if pid == 0:
            code = 70
            try:
                self._become(conn, request, fds)
                code = run_task(request.argv)
            except BaseException:
                traceback.print_exc()
            finally:
                with suppress(BaseException):
                    logging.shutdown()
                    sys.stdout.flush()
                    sys.stderr.flush()
                with suppress(BaseException):
                    conn.sendall(b"exit %d\n" % (code & 0xFF))
                os._exit(code & 0xFF)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        self._children[pid] = Child(conn, request.group)
        conn.sendall(b"pid %d\n" % pid)
        self._forked += 1
        if self._forked >= MOST_CHILDREN:
            self.retire(f"{self._forked} tasks are enough")

    def _become(self, conn: socket.socket, request: Request, fds: list[int]) -> None:
        """In the child: what a new process would be."""
        os.setpgid(0, request.group)
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        if self._listener is not None:
            self._listener.close()
        for child in self._children.values():
            child.conn.close()
        self._children = {}
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        for fd in [*fds, *self._own]:
            os.close(fd)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, closefd=False) for fd, mode in enumerate("rww"))
        sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        self._cookie.set(request.env.get(COOKIE.encode(), b""))
        os.environb.clear()
        os.environb.update(request.env)
        os.chdir(request.cwd)
        sys.argv = [os.fsdecode(word) for word in request.argv]
        conn.settimeout(None)
        random.seed()
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed()


def receive(conn: socket.socket, fds: list[int]) -> list[bytes]:
    """The fields of a request; its descriptors are put into `fds`."""
    data = b""
    while len(data) < 4 or len(data) < 4 + struct.unpack(">I", data[:4])[0]:
        part, some, _, _ = socket.recv_fds(conn, 1 << 16, 3 - len(fds) if len(fds) < 3 else 0)
        fds += some
        if not part:
            raise OSError("it is closed")
        data += part
        if len(data) >= 4 and struct.unpack(">I", data[:4])[0] > 64 << 20:
            raise Refused("the request is too large")
    return data[4:].split(b"\0")[:-1]


def run_task(argv: list[bytes]) -> int:
    """Runs what the program of that name runs; the exit code."""
    import airkafka_task

    try:
        return airkafka_task.main([os.fsdecode(word) for word in argv[1:]])
    except SystemExit as e:
        if e.code is None or isinstance(e.code, int):
            return e.code or 0
        print(e.code, file=sys.stderr)
        return 1


def resident() -> int:
    """Bytes of memory that are ours."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def serve() -> int:
    """The program; the exit code."""
    cookie = Cookie()
    listener = socket.socket(fileno=os.dup(0))
    tell = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    began, before = time.monotonic(), descriptors()
    preload()
    gc.collect()
    listener.setblocking(False)
    wrong = check(before)
    if wrong:
        print(f"airkafka-task serve: importing has left {', '.join(wrong)}", file=sys.stderr)
        return 1
    gc.freeze()
    runner = Runner(listener, tell, cookie)
    runner.say(f"ready in {time.monotonic() - began:.1f} s, {resident() >> 20} MiB")
    runner.run()
    return 0
