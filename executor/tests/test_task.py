"""The entry module without Airflow running: exit codes, and what is said."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
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


def run(tmp_path, stdin, server="http://127.0.0.1:9/execution/", *words):
    env = os.environ | {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": server,
        "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "1",
        "PYTHONPATH": str(Path(airkafka_task.__file__).parent),
        "NO_PROXY": "*",
    }
    command = [sys.executable, "-m", "airkafka_task", "workload", "--send", "id", *words]
    return subprocess.run(command, input=stdin, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_what_comes_too_late_is_refused_before_anything_else(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"not looked at")))
    before = ["--send", "id", "--not-after", str(time.time() - 100)]
    for words in (["workload", *before], ["airflow", "1", *before, "--", "airflow", "tasks", "run"]):
        assert airkafka_task.main(words) == 76
        assert "send id was to be started 100 s ago at the latest" in capsys.readouterr().err


@only_3
@pytest.mark.parametrize("text", ["", "[]", "{", '{"type":"ExecuteTask","token":"a-secret-token"}'])
def test_a_workload_that_cannot_be_read_is_65_and_not_shown(tmp_path, text):
    done = run(tmp_path, text)
    assert done.returncode == 65, done.stderr
    assert "the workload on stdin cannot be read" in done.stderr
    assert "a-secret-token" not in done.stderr + done.stdout


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
def test_each_refusal_of_the_api_server_has_its_code(tmp_path, status, detail, code):
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
        done = run(tmp_path, json.dumps(WORKLOAD), f"http://127.0.0.1:{server.server_port}/execution/")
    finally:
        server.shutdown()
    assert done.returncode == code, done.stderr + done.stdout
    assert f"the API server answers {status}" in done.stderr
    assert "a-secret-token" not in done.stderr + done.stdout


@only_3
def test_no_api_server_is_69(tmp_path):
    done = run(tmp_path, json.dumps(WORKLOAD))
    assert done.returncode == 69, done.stderr + done.stdout
    assert "the API server cannot be reached" in done.stderr
