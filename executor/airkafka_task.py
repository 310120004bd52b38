"""airkafka-task: runs one task of Airflow on the worker, and ends with an exit code that tells the truth about it.

`airflow tasks run` and Airflow 3's `execute_workload` exit with 0 although the task has failed. This asks for the state
that the task has come to, and tells a task that runs elsewhere, or is not to be run any more, from one that fails:

 0  the task has run: success, skipped, deferred, or to be looked at again later (reschedule)
 1  the task has failed, or is up for a retry
65  the workload on stdin cannot be read
69  Airflow's API server, or its database, cannot be reached
70  unexpected; the traceback is above
75  the task runs already: this is its record's repetition
76  the task is not to be run (any more): it has ended, was sent anew, is gone, or its time to start is over
77  the API server refuses the token

    airkafka-task workload --send ID --not-after SECONDS < WORKLOAD.json
    airkafka-task airflow TRY --send ID --not-after SECONDS -- airflow tasks run ...
    airkafka-task serve    the preloaded runner, which the worker starts: see airkafka_runner.py
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

RAN, FAILED, BAD_WORKLOAD, UNREACHABLE, UNEXPECTED = 0, 1, 65, 69, 70
ALREADY_RUNNING, REFUSED, TOKEN_REFUSED = 75, 76, 77

# States that a task is in when its run has done what it was there for.
GOOD = {"success", "skipped", "deferred", "up_for_reschedule", "awaiting_input"}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.kind == "serve":
        from airkafka_runner import serve

        return serve()
    try:
        if args.kind == "workload":
            return run_workload(sys.stdin.buffer.read(), args)
        return run_airflow(args.command, args)
    except Exception:
        traceback.print_exc()
        return UNEXPECTED


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="airkafka-task", description="Run one task of Airflow.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    workload = kinds.add_parser("workload", help="a workload of Airflow 3, on stdin")
    airflow = kinds.add_parser("airflow", help="a command of Airflow 2")
    kinds.add_parser("serve", help="the preloaded runner; the worker starts it")
    airflow.add_argument("try_number", type=int)
    for kind in (workload, airflow):
        kind.add_argument("--send", default="")
        kind.add_argument("--not-after", type=float, default=float("inf"), help="seconds since the epoch")
    airflow.add_argument("command", nargs="+")
    return parser.parse_args(argv)


def say(text: str) -> None:
    """A line for whoever reads the output, which the worker keeps the end of."""
    print(f"airkafka-task: {text}", file=sys.stderr, flush=True)


def is_late(args: argparse.Namespace) -> bool:
    """Whether Airflow has taken back this send by now, or is about to."""
    if time.time() < args.not_after:
        return False
    say(f"send {args.send} was to be started {time.time() - args.not_after:.0f} s ago at the latest; it is sent anew")
    return True


# --- Airflow 3 --------------------------------------------------------------------------------------------------------


def run_workload(data: bytes, args: argparse.Namespace) -> int:
    """Runs a workload."""
    if is_late(args):
        return REFUSED
    from airflow.executors import workloads
    from pydantic import TypeAdapter, ValidationError

    try:
        workload = TypeAdapter(workloads.All).validate_json(data)
    except ValidationError as e:
        # Not the values: there is a token among them.
        places = ", ".join(".".join(map(str, error["loc"])) + f": {error['msg']}" for error in e.errors()[:5])
        say(f"the workload on stdin cannot be read: {places}")
        return BAD_WORKLOAD
    states = watch_final_state()
    set_up_logging()
    if is_late(args):
        return REFUSED
    try:
        code = supervise(workload)
    except Exception as e:
        refused = refusal(e)
        if refused is None:
            raise
        return refused
    state = str(getattr(states[-1], "value", states[-1])) if states else None
    if state is None:
        return RAN if code == 0 else FAILED
    say(f"the task is {state}")
    return RAN if state in GOOD else FAILED


def supervise(workload: Any) -> int:
    """What Airflow's own executors do with it."""
    from airflow.executors.base_executor import BaseExecutor

    if hasattr(BaseExecutor, "run_workload"):  # from 3.3 on
        return BaseExecutor.run_workload(workload)
    from airflow.configuration import conf
    from airflow.sdk.execution_time.supervisor import supervise as run

    base = conf.get("api", "base_url", fallback="http://localhost:8080/").rstrip("/")
    server = conf.get("core", "execution_api_server_url", fallback=f"{base}/execution/")
    return run(
        ti=workload.ti,
        dag_rel_path=workload.dag_rel_path,
        bundle_info=workload.bundle_info,
        token=workload.token,
        server=server,
        log_path=workload.log_path,
    )


def watch_final_state() -> list[Any]:
    """A list that gets the state a task has come to, which its supervisor knows and does not tell."""
    from airflow.sdk.execution_time.supervisor import ActivitySubprocess

    states: list[Any] = []
    wait = ActivitySubprocess.wait

    def noted(self: Any) -> int:
        wake_at_exit(self)
        code = wait(self)
        states.append(self.final_state)
        return code

    ActivitySubprocess.wait = noted
    return states


def wake_at_exit(supervisor: Any) -> None:
    """Lets a supervisor see at once that its task's process has ended.

    It waits for the process's sockets. They are closed a moment before the process can be waited for; a supervisor that
    looks in between finds nothing more to wait for but its next heartbeat, and sleeps until then, for five seconds.
    """

    def look(fd: int) -> bool:
        selector.unregister(fd)
        os.close(fd)
        return True

    try:
        selector = supervisor.selector
        others = [key.data for key in selector.get_map().values()]
        if others and all(isinstance(data, tuple) and len(data) == 2 for data in others):
            fd = os.pidfd_open(supervisor.pid)
            selector.register(fd, selectors.EVENT_READ, (look, lambda fd: None))
    except (AttributeError, OSError, ValueError):
        pass  # a supervisor that is made otherwise, or a system without pidfd_open(2): as slow as it is


def set_up_logging() -> None:
    """As in Airflow's own container executors: what the supervisor has to say goes to our output."""
    from airflow.sdk.log import configure_logging
    from airflow.settings import dispose_orm

    try:
        dispose_orm(do_log=False)
    except TypeError:
        dispose_orm()
    configure_logging(output=sys.stdout.buffer, json_output=True)


def refusal(error: BaseException) -> int | None:
    """The exit code for a task that the API server does not let run; None: that is not what has happened."""
    import httpx

    for cause in causes(error):
        if isinstance(cause, httpx.HTTPStatusError):
            status = cause.response.status_code
            detail = getattr(cause, "detail", None)
            told = detail.get("detail", detail) if isinstance(detail, dict) else {}
            state = told.get("previous_state") if isinstance(told, dict) else None
            say(f"the API server answers {status}: {json.dumps(detail, default=str)}")
            if status in (401, 403):
                return TOKEN_REFUSED
            if status == 409 and state == "running":
                return ALREADY_RUNNING
            if status in (404, 409, 410):
                return REFUSED
            return UNREACHABLE if status >= 500 else None
        if isinstance(cause, httpx.TransportError):
            say(f"the API server cannot be reached: {cause!r}")
            return UNREACHABLE
    return None


def causes(error: BaseException | None) -> list[BaseException]:
    """An error and what has led to it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


# --- Airflow 2 --------------------------------------------------------------------------------------------------------


def run_airflow(command: Sequence[str], args: argparse.Namespace) -> int:
    """Runs `airflow tasks run ...`."""
    if is_late(args):
        return REFUSED
    from airflow.cli import cli_parser
    from sqlalchemy.exc import OperationalError

    run = cli_parser.get_parser().parse_args(list(command[1:]))
    started = watch_start()
    try:
        refused = look_before(run, args)
        if refused is not None:
            return refused
        try:
            run.func(run)
        except SystemExit as e:
            say(f"airflow exits with {e.code}")
        except OperationalError:
            raise
        except Exception:
            traceback.print_exc()
        return look_after(run, started)
    except OperationalError as e:
        say(f"Airflow's database cannot be reached: {e.orig}")
        return UNREACHABLE


def look_before(run: argparse.Namespace, args: argparse.Namespace) -> int | None:
    """The exit code for a task that is not to be run by this send; None: it is."""
    ti = task_instance(run)
    if ti is None:
        say("there is no such task instance")
        return REFUSED
    state, try_number, executor_id = ti
    if state == "running":
        say("the task runs already")
        return ALREADY_RUNNING
    if state != "queued" or try_number != args.try_number:
        say(f"the task is {state}, try {try_number}; this is for try {args.try_number}, and for one that is queued")
        return REFUSED
    if executor_id is not None and args.send not in ("", executor_id):
        say(f"the task was sent anew as {executor_id}; this is send {args.send}")
        return REFUSED
    return REFUSED if is_late(args) else None


def look_after(run: argparse.Namespace, started: list[bool]) -> int:
    """The exit code by the state that the task has come to."""
    ti = task_instance(run)
    state = ti[0] if ti else None
    say(f"the task is {state}")
    if not started:
        return FAILED  # it has not come so far; the reason is above
    if not started[-1]:
        return ALREADY_RUNNING if state == "running" else REFUSED
    if state in GOOD or state in (None, "scheduled", "queued"):  # the latter: looked at again already
        return RAN
    return FAILED


def watch_start() -> list[bool]:
    """A list that gets whether Airflow has let the task start."""
    from airflow.models.taskinstance import TaskInstance

    started: list[bool] = []
    check = TaskInstance.check_and_change_state_before_execution

    def noted(self: Any, *args: Any, **kwargs: Any) -> bool:
        may = check(self, *args, **kwargs)
        started.append(bool(may))
        return may

    TaskInstance.check_and_change_state_before_execution = noted
    return started


def task_instance(run: argparse.Namespace) -> tuple[str | None, int, str | None] | None:
    """State, try and `external_executor_id` of a task, as the database has them."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        row = (
            session.query(TaskInstance.state, TaskInstance.try_number, TaskInstance.external_executor_id)
            .filter_by(
                dag_id=run.dag_id, task_id=run.task_id, run_id=run.execution_date_or_run_id, map_index=run.map_index
            )
            .one_or_none()
        )
    return None if row is None else (None if row[0] is None else str(row[0]), row[1], row[2])


def script() -> None:
    """The program."""
    sys.exit(main())


if __name__ == "__main__":
    script()
