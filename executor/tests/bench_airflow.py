"""What a trivial task costs: this worker with and without the preloaded runner, CeleryExecutor + Redis, LocalExecutor.

One DAG on two slots, alternating; the same Airflow, database and machine. Figures of all processes together (scheduler,
API server, worker), so that nobody hides work in another process. Prints a table and JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from live import AIRFLOW, BIN, Live, Process, free_port, run, wait_for

TASKS = int(os.environ.get("AIRKAFKA_BENCH_TASKS", "60"))
ROUNDS = int(os.environ.get("AIRKAFKA_BENCH_ROUNDS", "2"))
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_of(processes):
    """Seconds of CPU of all processes in these trees, and of those that they have outlived."""
    total = 0
    for process in processes:
        for pid in process.tree():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += sum(map(int, fields[11:15]))
    return total / TICKS


def resident_of(processes):
    """MiB that the processes in these trees have for themselves, shared pages divided by their owners (PSS)."""
    total = 0
    for process in processes:
        for pid in process.tree():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


class Bench:
    """Airflow with one executor after the other."""

    def __init__(self, scratch):
        self.live = Live(scratch)
        redis = shutil.which("redis-server")
        assert redis, "Redis is missing: apt-get install redis-server"
        port = free_port()
        words = [redis, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.redis = Process(scratch / "redis.log", words, os.environ, scratch)
        self.live.env |= {
            "AIRFLOW__CELERY__BROKER_URL": f"redis://127.0.0.1:{port}/0",
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{self.live.postgres.url}",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "3600",
        }
        self.count = 0

    def round(self, mode):
        """Runs the DAG; tasks a minute, and CPU of a task."""
        live, env = self.live, dict(self.live.env)
        executor = {"celery": "CeleryExecutor", "local": "LocalExecutor"}.get(mode, env["AIRFLOW__CORE__EXECUTOR"])
        live.env |= {
            "AIRFLOW__CORE__EXECUTOR": executor,
            "AIRFLOW__CORE__PARALLELISM": "2" if mode == "local" else "16",
        }
        live.services, live.workers = {}, []
        live.start()
        if mode == "celery":
            log = live.scratch / f"celery-{self.count}.log"
            words = [BIN / "airflow", "celery", "worker", "--skip-serve-logs", "--concurrency", "2"]
            live.workers.append(Process(log, words, live.env, live.scratch))
            live.workers[0].wait_for_log(" ready.")
        elif mode != "local":
            preload = {"runner": "airflow", "interpreter": "none"}[mode]
            live.worker(threads=2, name=f"{mode}-{self.count}", AIRKAFKA_PRELOAD=preload)
            if mode == "runner":
                live.workers[0].wait_for_log("is ready:")
        self.count += 1
        dag = f"bench_{mode}_{self.count}"
        # One that warms up, and then those that are counted.
        self.dag(f"{dag}_warm", 2)
        live.wait_for_run(f"{dag}_warm", 300)
        processes = [*live.services.values(), *live.workers]
        cpu, began = cpu_of(processes), time.monotonic()
        self.dag(dag, TASKS)
        wait_for(
            "start",
            lambda: live.postgres.ask(f"select 1 from task_instance where dag_id = '{dag}' and state = 'running'"),
        )
        memory = []
        while not live.postgres.ask(f"select 1 from dag_run where dag_id = '{dag}' and state in ('success', 'failed')"):
            memory.append(resident_of(live.workers))
            time.sleep(1)
            assert time.monotonic() - began < 1800, live.states(dag)
        states = {state for state, _ in live.states(dag).values()}
        assert states == {"success"}, states
        cpu = cpu_of(processes) - cpu
        columns = "extract(epoch from max(end_date) - min(start_date)), count(*)"
        [[seconds, count]] = live.postgres.ask(f"select {columns} from task_instance where dag_id = '{dag}'")
        assert int(count) == TASKS
        for process in [*live.workers, *live.services.values()]:
            process.stop()
        for name in (dag, f"{dag}_warm"):
            (live.dags / f"{name}.py").unlink()
        live.env = env
        return {"per_minute": 60 * TASKS / float(seconds), "cpu": cpu / TASKS, "memory": max(memory, default=0)}

    def dag(self, name, count):
        text = f"for n in range({count}):\n    PythonOperator(task_id=f't{{n}}', python_callable=lambda: 1)"
        self.live.dag(name, text)

    def close(self):
        self.redis.kill_tree()
        self.live.close()


def main():
    modes = ["runner", "celery", "local"]
    plan = [mode for _ in range(ROUNDS) for mode in modes] + ["interpreter"]
    scratch = Path(tempfile.mkdtemp(prefix="airkafka-bench-"))
    bench = Bench(scratch)
    figures = {}
    try:
        for mode in plan:
            figures.setdefault(mode, []).append(bench.round(mode))
            print(f"{mode}: {figures[mode][-1]}", file=sys.stderr, flush=True)
    finally:
        bench.close()
        shutil.rmtree(scratch, ignore_errors=True)
    medians = {
        mode: {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
        for mode, rows in figures.items()
    }
    cpus = subprocess.run(["nproc"], capture_output=True, text=True, check=False).stdout.strip()
    print(f"Airflow {AIRFLOW}, {TASKS} tasks, 2 slots, {cpus} cores, {run('uname', '-m')}")
    names = {"runner": "this worker, preloaded", "interpreter": "this worker, new interpreters",
             "celery": "CeleryExecutor + Redis", "local": "LocalExecutor"}  # fmt: skip
    print(f"{'':32}{'tasks/min':>10}{'CPU s/task':>12}{'worker MiB':>12}")
    for mode in ("runner", "celery", "local", "interpreter"):
        row = medians[mode]
        print(f"{names[mode]:32}{row['per_minute']:10.1f}{row['cpu']:12.2f}{row['memory']:12.0f}")
    print(json.dumps({"airflow": AIRFLOW, "tasks": TASKS, "rounds": figures}))


if __name__ == "__main__":
    main()
