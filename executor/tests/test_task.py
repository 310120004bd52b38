"""The entry module without Airflow running: exit codes, and what is said."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from airflow import __version__ as AIRFLOW

import airkafka_task

IS_2 = AIRFLOW.startswith("2.")
only_3 = pytest.mark.skipif(IS_2, reason="Airflow 2 has no workloads")

WORKLOAD = {
    "type": "ExecuteTask",
    "token": "a-secret-token",
    "ti": {
        "id": "019a0000-0000-7000-8000-000000000000",
        "dag_version_id": "019a0000-0000-7000-8000-000000000001",
        "task_id": "task",
        "dag_id": "dag",
        "run_id": "run",
        "try_number": 1,
        "map_index": -1,
        "pool_slots": 1,
        "queue": "default",
        "priority_weight": 1,
    },
    "dag_rel_path": "dag.py",
    "bundle_info": {"name": "dags-folder"},
    "log_path": None,
}


def run(stdin, server="http://127.0.0.1:9/execution/"):
    """Runs a workload in a fork of ours, which has Airflow imported; exit code, and all that was written."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written:
        given.write(stdin.encode())
        given.seek(0)
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                for file, fds in ((given, [0]), (written, [1, 2])):
                    for fd in fds:
                        os.dup2(file.fileno(), fd)
                sys.stdin, sys.stdout, sys.stderr = (
                    os.fdopen(fd, mode, closefd=False) for fd, mode in enumerate("rww")
                )
                os.environ["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = server
                code = airkafka_task.main(["workload", "--send", "id"])
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        written.seek(0)
        return status, written.read().decode()


def test_what_comes_too_late_is_refused_before_anything_else(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"not looked at")))
    before = ["--send", "id", "--not-after", str(time.time() - 100)]
    for words in (["workload", *before], ["airflow", "1", *before, "--", "airflow", "tasks", "run"]):
        assert airkafka_task.main(words) == 76
        assert "send id was to be started 100 s ago at the latest" in capsys.readouterr().err


@only_3
@pytest.mark.parametrize("text", ["", "[]", "{", '{"type":"ExecuteTask","token":"a-secret-token"}'])
def test_a_workload_that_cannot_be_read_is_65_and_not_shown(text):
    code, written = run(text)
    assert code == 65, written
    assert "the workload on stdin cannot be read" in written
    assert "a-secret-token" not in written


@only_3
@pytest.mark.parametrize(
    ("status", "detail", "code"),
    [
        (409, {"reason": "invalid_state", "previous_state": "running"}, 75),
        (409, {"reason": "invalid_state", "previous_state": "success"}, 76),
        (404, {"reason": "not_found"}, 76),
        (410, {"reason": "gone"}, 76),
        (401, "no", 77),
        (403, {"reason": "no"}, 77),
        (503, "away", 69),
    ],
)
def test_each_refusal_of_the_api_server_has_its_code(status, detail, code):
    class Refuse(BaseHTTPRequestHandler):
        def do_PATCH(self):
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps({"detail": detail}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        got, written = run(json.dumps(WORKLOAD), f"http://127.0.0.1:{server.server_port}/execution/")
    finally:
        server.shutdown()
    assert got == code, written
    assert f"the API server answers {status}" in written
    assert "a-secret-token" not in written


@only_3
def test_no_api_server_is_69():
    code, written = run(json.dumps(WORKLOAD))
    assert code == 69, written
    assert "the API server cannot be reached" in written


@pytest.mark.skipif(not IS_2, reason="Airflow 3 has no database on workers")
def test_no_database_is_69():
    env = os.environ | {
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql+psycopg2://nobody@127.0.0.1:9/nothing",
        "PYTHONPATH": str(Path(airkafka_task.__file__).parent),
    }
    task = ["airflow", "tasks", "run", "dag", "task", "run", "--local"]
    command = [sys.executable, "-m", "airkafka_task", "airflow", "1", "--send", "id", "--", *task]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 69, done.stderr
    assert "Airflow's database cannot be reached" in done.stderr
