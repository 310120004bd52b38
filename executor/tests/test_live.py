"""The executor, the worker and real Airflow: tasks of every kind, then what can go wrong."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from live import IS_2, Live, wait_for


@pytest.fixture(scope="module")
def live():
    scratch = Path(tempfile.mkdtemp(prefix="airkafka-airflow-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        live = Live(scratch)
        stack.callback(live.close)
        live.start()
        live.worker(WORKER="plain")
        # This one starts a new interpreter for each task; the others fork them.
        live.worker("commands.gpu", threads=1, WORKER="gpu", AIRKAFKA_PRELOAD="none")
        yield live


def test_every_task_ends_in_the_state_that_is_its_own(live):
    live.dag(
        "outcomes",
        """
BashOperator(task_id='ok', bash_command=mark('ran'))
BashOperator(task_id='exit_127', bash_command='exit 127')
BashOperator(task_id='retried', bash_command=mark('ran') + '; test {{ ti.try_number }} -gt 1', retries=1)
BashOperator(task_id='skipped', bash_command='exit 99')
BashOperator.partial(task_id='mapped').expand(bash_command=[mark('one'), mark('two')])
BashOperator(task_id='on_gpu', bash_command=mark('ran'), queue='gpu')
BashOperator(task_id='größe_タスク', bash_command=mark('ran'))
BashSensor(task_id='sensor', bash_command=mark('looked') + '; test $(grep -c "^sensor" $TRACE) -gt 1',
           mode='reschedule', poke_interval=3)
""",
    )
    states = live.wait_for_run("outcomes", 420)
    assert states == {
        ("ok", -1): ("success", 1),
        ("exit_127", -1): ("failed", 1),
        ("retried", -1): ("success", 2),
        ("skipped", -1): ("skipped", 1),
        ("mapped", 0): ("success", 1),
        ("mapped", 1): ("success", 1),
        ("on_gpu", -1): ("success", 1),
        ("größe_タスク", -1): ("success", 1),
        ("sensor", -1): ("success", 1),
    }
    assert live.traced("ok") == [["ok", "-1", "1", "ran", "plain"]]
    assert live.traced("on_gpu") == [["on_gpu", "-1", "1", "ran", "gpu"]]
    assert sorted(line[3] for line in live.traced("mapped")) == ["one", "two"]
    assert len(live.traced("retried")) == 2
    assert len(live.traced("sensor")) == 2
    assert len(live.traced("größe_タスク")) == 1
    # The worker tells the truth, and the scheduler's log says what has come of each, and where.
    log = live.workers[0].text()
    assert 'key=["outcomes", "exit_127"' in log.replace("\\", "")
    failed = [line for line in log.splitlines() if "exit_127" in line and "state=failed" in line]
    assert len(failed) == 1, log
    assert "exit=1 " in failed[0], failed
    scheduler = live.services["scheduler"].text()
    assert "sent TaskInstanceKey(dag_id='outcomes', task_id='ok'" in scheduler
    assert "command=commands-" in scheduler
    # A workload has a token in it: on stdin, in no log and no argv.
    if not IS_2:
        sent = [value for key, value in live.sends() if key[1] == "ok"]
        token = sent[0].partition('\\"token\\":\\"')[2].partition('\\"')[0]
        assert len(token) > 100, sent
        for process in [*live.workers, *live.services.values()]:
            assert token not in process.text(), process.log
        for argv in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                assert token.encode() not in argv.read_bytes()


def test_a_forked_task_is_what_it_is_in_a_new_interpreter(live):
    live.dag(
        "modes",
        """
def work(n, ti):
    import os, sys
    names = sorted(name for name in os.environ if name.startswith('AIRFLOW_'))
    print('working on', n, 'in', os.getcwd(), 'with', names)
    if n == 2 and ti.try_number == 1:
        raise ValueError('once')
    return [n, 'airkafka_runner' in sys.modules]
for queue in ('default', 'gpu'):
    PythonOperator.partial(task_id=f'twin_{queue}', queue=queue, retries=1, python_callable=work).expand(
        op_args=[[1], [2]])
""",
    )
    states = live.wait_for_run("modes", 420)
    assert states == {(f"twin_{queue}", n): ("success", n + 1) for queue in ("default", "gpu") for n in (0, 1)}

    def xcoms(task):
        column = "convert_from(value, 'utf8')" if IS_2 else "value"
        rows = live.postgres.ask(
            f"select map_index, key, {column} from xcom where dag_id = 'modes' and task_id = '{task}' order by 1, 2"
        )
        return [(index, key, json.loads(value)) for index, key, value in rows]

    forked, new = xcoms("twin_default"), xcoms("twin_gpu")
    assert [value for _, _, value in forked] == [[1, True], [2, True]], "this worker forks"
    assert [(index, key, value[0]) for index, key, value in forked] == [(i, k, v[0]) for i, k, v in new]
    assert [value[1] for _, _, value in new] == [False, False], "and this one does not"
    logs = {}
    for task in ("twin_default", "twin_gpu"):
        pattern = f"dag_id=modes/run_id=*/task_id={task}/map_index=*/attempt=*.log"
        for log in sorted((live.scratch / "logs").glob(pattern)):
            logs.setdefault(task, []).append((log.parent.name, log.name, messages(log.read_text())))
    assert len(logs["twin_default"]) == 3
    lines = {task: [line for *place, found in logs[task] for line in [str(place), *found]] for task in logs}
    diff = "\n".join(difflib.unified_diff(lines["twin_gpu"], lines["twin_default"], "new", "forked", lineterm="", n=0))
    assert diff == "", diff
    text = str(logs["twin_default"])
    assert "working on ~ in" in text
    assert "ValueError" in text


def messages(text):
    """What a log says, without what differs from run to run."""
    found = []
    for line in text.splitlines():
        if "follow-on schedule check" in line:
            continue  # the scheduler may come first
        if line.startswith("{"):
            entry = json.loads(line)
            entry.pop("timestamp", None)
            line = json.dumps(entry, sort_keys=True)
        for pattern in (
            r"twin_\w+",
            r"\b(gpu|default)\b",
            r"/tmp/tmp\w+",
            r"[0-9a-f]{8}-[0-9a-f-]{27}",
            r"0x[0-9a-f]+",
            r"\b(True|False)\b",
            r"\d+",
        ):
            line = re.sub(pattern, "~", line)
        found.append(line)
    return sorted(found)  # what a task prints and what it logs come on ways of their own


def test_a_record_that_comes_twice_does_no_harm_to_the_task_that_runs(live):
    live.dag("twice", f"BashOperator(task_id='twice', bash_command={LONG!r}.replace('MARK', mark('start')))")
    live.wait_for_trace("twice", "-1", "1", "start")
    [(key, value)] = [(key, value) for key, value in live.sends() if key[0] == "twice"]
    again(live, key, value)
    wait_for("end of the second", lambda: [line for line in ended(live, "twice") if "exit=75" in line])
    (live.scratch / "go-twice").touch()
    assert live.wait_for_run("twice") == {("twice", -1): ("success", 1)}
    assert len(live.traced("twice")) == 1
    # And once more when all is over.
    again(live, key, value)
    wait_for("end of the third", lambda: [line for line in ended(live, "twice") if "exit=76" in line])
    assert live.states("twice") == {("twice", -1): ("success", 1)}
    assert len(live.traced("twice")) == 1


# A task that says when it starts, and ends when it is told to.
LONG = "MARK; until test -e $(dirname $TRACE)/go-{{ ti.task_id }}; do sleep 0.2; done"


def ended(live, task):
    return [line for worker in live.workers for line in worker.text().splitlines() if task in line and "exit=" in line]


def again(live, key, value):
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": live.broker.address})
    producer.produce("commands", value.encode(), json.dumps(key, ensure_ascii=False).encode())
    assert producer.flush(30) == 0


def test_a_scheduler_that_is_killed_loses_and_repeats_nothing(live):
    live.dag(
        "orphans",
        f"""
BashOperator(task_id='long', bash_command={LONG!r}.replace('MARK', mark('start')))
BashOperator(task_id='short', bash_command=mark('start') + '; sleep 3')
""",
    )
    live.wait_for_trace("long", "-1", "1", "start")
    live.wait_for_trace("short", "-1", "1", "start")
    live.services["scheduler"].kill_tree()
    # Its result comes when nobody is there to take it.
    wait_for("end of the short one", lambda: ended(live, '"short"'))
    scheduler = live.scheduler("scheduler-2")
    scheduler.wait_for_log("adopted")
    (live.scratch / "go-long").touch()
    assert live.wait_for_run("orphans") == {("long", -1): ("success", 1), ("short", -1): ("success", 1)}
    assert len(live.traced("long")) == 1
    assert len(live.traced("short")) == 1


def test_two_schedulers_share_the_work(live):
    second = live.scheduler("scheduler-3")
    second.wait_for_log("results come from")
    live.dag("shared", "BashOperator.partial(task_id='share').expand(bash_command=[mark('ran')] * 6)")
    states = live.wait_for_run("shared", 420)
    assert states == {("share", index): ("success", 1) for index in range(6)}
    assert sorted(line[1] for line in live.traced("share")) == list("012345")
    assert second.stop() is not None


def test_a_runner_that_is_killed_takes_no_task_along(live):
    live.dag("spared", f"BashOperator(task_id='spared', bash_command={LONG!r}.replace('MARK', mark('start')))")
    live.wait_for_trace("spared", "-1", "1", "start")
    worker = live.workers[0]
    [runner] = re.findall(r"preloaded runner (\d+) is ready", worker.text())
    os.kill(int(runner), signal.SIGKILL)
    wait_for("another runner", lambda: len(re.findall(r"preloaded runner \d+ is ready", worker.text())) == 2)
    (live.scratch / "go-spared").touch()
    assert live.wait_for_run("spared") == {("spared", -1): ("success", 1)}
    assert len(live.traced("spared")) == 1


def test_a_worker_that_is_killed_leaves_no_success(live):
    live.dag("lost", f"BashOperator(task_id='lost', bash_command={LONG!r}.replace('MARK', mark('start')))")
    live.wait_for_trace("lost", "-1", "1", "start")
    live.workers[0].kill_tree()
    live.worker(WORKER="plain")
    assert live.wait_for_run("lost") == {("lost", -1): ("failed", 1)}
    assert len(live.traced("lost")) == 1


def test_what_was_revoked_is_not_run_when_a_worker_comes(live):
    live.dag("late", "BashOperator(task_id='late', bash_command=mark('ran'), queue='late')")
    wait_for("a second send", lambda: len(live.sends("commands.late")) >= 2, 300)
    sends = live.sends("commands.late")
    assert len({key[5] for key, _ in sends}) == len(sends), "each has an id of its own"
    live.worker("commands.late", threads=1, WORKER="late")
    states = live.wait_for_run("late")
    assert [state for state, _ in states.values()] == ["success"]
    assert len(live.traced("late")) == 1
    assert len([line for line in ended(live, '"late"') if "exit=76" in line]) >= 1


def test_a_task_that_cannot_be_sent_goes_back_to_the_scheduler(live):
    live.broker.kill()
    live.dag("unsent", "BashOperator(task_id='unsent', bash_command=mark('ran'), retries=20)")
    name = "scheduler-2"
    live.services[name].wait_for_log("not sent to Kafka")
    assert live.broker.start() == live.broker.address
    states = live.wait_for_run("unsent")
    assert states[("unsent", -1)][0] == "success"
    assert states[("unsent", -1)][1] > 1, states
    assert len(live.traced("unsent")) == 1
