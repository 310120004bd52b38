"""A real Airflow for tests: PostgreSQL, a broker, workers, and Airflow's own services in a scratch AIRFLOW_HOME.

Everything listens on 127.0.0.1, and ends with the test: each process is started in a process group of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from airflow import __version__ as AIRFLOW

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
IS_2 = AIRFLOW.startswith("2.")
PATIENCE = 240


def wait_for(what, look, patience=PATIENCE):
    """What `look` gives as soon as it is something."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {what} within {patience} s")


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


class Process:
    """A process, all that it starts, and its output."""

    def __init__(self, log, command, env, cwd=None):
        self.log = Path(log)
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                list(map(str, command)), env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self):
        return self._child.pid

    def text(self):
        return self.log.read_text(errors="replace")

    def wait_for_log(self, text):
        try:
            wait_for(f"{text!r} in {self.log}", lambda: text in self.text())
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.text()[-3000:]}") from None

    def tree(self):
        """The pids of it and all that descends from it, whatever group or session that is in."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                parents[int(stat.parent.name)] = int(fields[1])
        pids = [self.pid]
        for pid in pids:
            pids += [child for child, parent in parents.items() if parent == pid]
        return pids

    def kill_tree(self):
        """As if its machine was gone."""
        pids = self.tree()
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        self._child.wait()

    def stop(self, patience=20):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(patience)
        self.kill_tree()
        return self._child.returncode


class Postgres:
    """A cluster of its own; PostgreSQL refuses to run as root, so it is then run as `postgres`."""

    def __init__(self, scratch):
        bins = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        initdb = (bins[-1] / "initdb") if bins else shutil.which("initdb")
        assert initdb, "PostgreSQL is missing: apt-get install postgresql"
        self._bin = Path(initdb).parent
        self._as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        data, self.port = scratch / "postgres", free_port()
        data.mkdir()
        if self._as:
            user = pwd.getpwnam("postgres")
            os.chown(data, user.pw_uid, user.pw_gid)
        run(*self._as, initdb, "-D", data, "-A", "trust", "-U", "airflow", "--no-sync", cwd="/")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._stop = [*self._as, self._bin / "pg_ctl", "-D", data, "-m", "immediate", "stop"]
        log = data / "log"
        run(*self._as, self._bin / "pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start", cwd="/")
        self.url = f"postgresql+psycopg2://airflow@127.0.0.1:{self.port}/airflow"
        self.ask("create database airflow", "postgres")

    def ask(self, sql, database="airflow"):
        """Rows as lists of text."""
        address = ["-h", "127.0.0.1", "-p", self.port, "-U", "airflow", "-d", database]
        text = run(self._bin / "psql", *address, "-XAtF", "\t", "-c", sql)
        return [line.split("\t") for line in text.splitlines()]

    def stop(self):
        run(*self._stop, cwd="/")


class Broker:
    """A broker, its topics, and its console tools."""

    def __init__(self, scratch):
        self._script = ROOT / "fixtures/broker/kafka.sh"
        self._dir = scratch / "broker"
        self.address = self.start()

    def start(self):
        return run(self._script, "start", "3.9.2", self._dir, "--watch", os.getpid(), "--temporary")

    def topic(self, name, partitions=1):
        run(self._script, "topic", self.address, name, partitions)

    def stop(self):
        run(self._script, "stop", self._dir)

    def kill(self):
        run(self._script, "stop", self._dir, "--kill")


class Live:
    """All of it."""

    def __init__(self, scratch):
        self.scratch = scratch
        scratch.chmod(0o755)
        self.dags = scratch / "dags"
        self.trace = scratch / "trace"
        self.dags.mkdir()
        (scratch / "plugins").mkdir()
        shutil.copy(ROOT / "executor/kafka_executor_plugin.py", scratch / "plugins")
        self.services, self.workers = {}, []
        self.postgres = Postgres(scratch)
        self.broker = Broker(scratch)
        for topic, partitions in [("commands", 2), ("commands.gpu", 1), ("commands.late", 1), ("results", 4)]:
            self.broker.topic(topic, partitions)
        self.api = free_port()
        self.env = os.environ | self._settings()
        # Beside `airflow`, where pip puts it; in a directory of our own, for the environment is others' as well.
        bin_ = scratch / "bin"
        bin_.mkdir()
        (bin_ / "airflow").symlink_to(BIN / "airflow")
        entry = bin_ / "airkafka-task"
        entry.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT / 'executor')!r})\n"
                         "from airkafka_task import script\nscript()\n")  # fmt: skip
        entry.chmod(0o755)
        run(BIN / "airflow", "db", "migrate", env=self.env)

    def _settings(self):
        settings = {
            "CORE__EXECUTOR": "kafka_executor_plugin.KafkaExecutor",
            "CORE__DAGS_FOLDER": self.dags,
            "CORE__PLUGINS_FOLDER": self.scratch / "plugins",
            "CORE__LOAD_EXAMPLES": False,
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
            "CORE__PARALLELISM": 16,
            "CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self.api}/execution/",
            "API_AUTH__JWT_SECRET": "no-secret-but-in-this-test-0123456789abcdef0123456789abcdef",
            "API__PORT": self.api,
            "API__HOST": "127.0.0.1",
            "API__BASE_URL": f"http://127.0.0.1:{self.api}/",
            "DATABASE__SQL_ALCHEMY_CONN": self.postgres.url,
            "LOGGING__BASE_LOG_FOLDER": self.scratch / "logs",
            "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": 1,
            "SCHEDULER__JOB_HEARTBEAT_SEC": 1,
            "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": 8,
            "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 5,
            "SCHEDULER__TASK_QUEUED_TIMEOUT": 90,
            "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": 5,
            "SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": 5,
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 15,
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": 3,
            "SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": 15,
            "SCHEDULER__ZOMBIE_DETECTION_INTERVAL": 3,
            "SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": 3,
            "SCHEDULER__DAG_DIR_LIST_INTERVAL": 3,
            "SCHEDULER__MIN_FILE_PROCESS_INTERVAL": 3,
            "SCHEDULER__ENABLE_HEALTH_CHECK": False,
            "DAG_PROCESSOR__REFRESH_INTERVAL": 3,
            "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": 3,
            "DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": 2,
            "KAFKA__BROKER_URL": self.broker.address,
            "KAFKA__TOPIC": "commands",
            "KAFKA__RESULTS_TOPIC": "results",
            "KAFKA__SEND_TIMEOUT": 8,
        }
        env = {f"AIRFLOW__{name}": str(value) for name, value in settings.items()}
        path = f"{BIN}:{os.environ['PATH']}"
        env |= {"AIRFLOW_HOME": str(self.scratch), "TRACE": str(self.trace), "PATH": path, "NO_PROXY": "*"}
        return env | {"AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False", "PYTHONWARNINGS": "ignore"}

    # --- services ---

    def service(self, name, *words):
        log = self.scratch / f"{name}.log"
        process = Process(log, [BIN / "airflow", *words], self.env, self.scratch)
        self.services[name] = process
        return process

    def scheduler(self, name="scheduler"):
        # It looks up who else is there; each needs a host name of its own to be told apart in the logs alone.
        return self.service(name, "scheduler")

    def start(self):
        self.scheduler()
        if not IS_2:
            self.service("api-server", "api-server", "--workers", "1")
            self.service("dag-processor", "dag-processor")
            self.services["api-server"].wait_for_log("Application startup complete")

    def worker(self, topic="commands", threads=4, name="", **env):
        binary = os.environ.get("AIRKAFKA_WORKER", ROOT / "target/release/airkafka-worker")
        words = ["--brokers", self.broker.address, "--topic", topic, "--results-topic", "results", "--group", topic]
        words += ["--threads", threads, "--airflow", self.scratch / "bin/airflow", "-X", "session.timeout.ms=6000"]
        log = self.scratch / f"worker-{name or topic}-{len(self.workers)}.log"
        process = Process(log, [binary, *words], self.env | env, self.scratch)
        self.workers.append(process)
        return process

    # --- what has come of it ---

    def dag(self, name, text):
        """A DAG that runs once, at once."""
        head = (
            "import os, pendulum\nfrom airflow import DAG\n"
            "try:\n    from airflow.providers.standard.operators.bash import BashOperator\n"
            "    from airflow.providers.standard.operators.python import PythonOperator\n"
            "    from airflow.providers.standard.sensors.bash import BashSensor\n"
            "except ImportError:\n    from airflow.operators.bash import BashOperator\n"
            "    from airflow.operators.python import PythonOperator\n"
            "    from airflow.sensors.bash import BashSensor\n"
            "def mark(word):\n    return 'echo \"{{ ti.task_id }} {{ ti.map_index }} {{ ti.try_number }} '"
            " + word + ' $WORKER\" >> $TRACE'\n"
            f"with DAG({name!r}, schedule='@once', start_date=pendulum.datetime(2024, 1, 1), catchup=False,\n"
            "         default_args={'retry_delay': pendulum.duration(seconds=1)}) as dag:\n"
        )
        body = "".join(f"    {line}\n" for line in text.strip().splitlines())
        part = self.dags / f".{name}"
        part.write_text(head + body)
        part.rename(self.dags / f"{name}.py")

    def states(self, dag):
        """(task, map index): state, try."""
        rows = self.postgres.ask(
            f"select task_id, map_index, coalesce(state, ''), try_number from task_instance where dag_id = '{dag}'"
        )
        return {(row[0], int(row[1])): (row[2], int(row[3])) for row in rows}

    def wait_for_run(self, dag, patience=PATIENCE):
        """The states of its tasks, once all have come to an end."""

        def ended():
            rows = self.postgres.ask(f"select state from dag_run where dag_id = '{dag}'")
            return rows and rows[0][0] in ("success", "failed")

        try:
            wait_for(f"end of {dag}", ended, patience)
        except AssertionError as e:
            raise AssertionError(f"{e}; tasks: {self.states(dag)}\n{self.logs()}") from None
        return self.states(dag)

    def wait_for_trace(self, *words):
        try:
            wait_for(f"{words} in the trace", lambda: self.traced(*words))
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.logs()}") from None

    def traced(self, *words):
        """The lines of the trace that begin like this."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return [line.split() for line in lines if line.split()[: len(words)] == list(words)]

    def sends(self, topic="commands"):
        """Key and value of the records that were sent."""
        text = run(ROOT / "fixtures/broker/kafka.sh", "consume", self.broker.address, topic, "--timeout-ms", "3000")
        pairs = [line.partition("\t")[::2] for line in text.splitlines() if "\t" in line]
        return [(json.loads(key), value) for key, value in pairs]

    def logs(self):
        """The end of every log."""
        files = [process.log for process in [*self.services.values(), *self.workers]]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}" for file in files)

    def close(self):
        for process in [*self.workers, *self.services.values()]:
            process.kill_tree()
        with contextlib.suppress(AssertionError):
            self.broker.kill()
        self.postgres.stop()
