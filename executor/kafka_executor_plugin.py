"""KafkaExecutor: hands Airflow's tasks to airkafka-worker through Kafka, and reads what became of them.

For Airflow 2.11 and 3.x. Put this file into $AIRFLOW_HOME/plugins (or install it with pip) and set
`executor = kafka_executor_plugin.KafkaExecutor`. The worker's side is airkafka_task.py.

A task is sent as one record; its key is a JSON array of the task instance's key and an id of this very send. A worker
writes the key back with the result, so that a result is told from those of other sends, and of other schedulers. The id
is also what Airflow keeps as `external_executor_id`, by which another scheduler adopts the task.

The scheduler never waits for Kafka: sending is asynchronous, and results are read by a thread of their own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import threading
import time
import uuid
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow.configuration import conf
from airflow.executors.base_executor import BaseExecutor
from airflow.models.taskinstancekey import TaskInstanceKey

try:
    from airflow.utils.state import TaskInstanceState
except ImportError:
    from airflow.sdk import TaskInstanceState

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable, Sequence

# What a record of a task is run with on the worker; looked for beside `airflow`, then on PATH.
ENTRY = "airkafka-task"
# Exit codes of the entry module that say that another run of the task counts, not this one.
ALREADY_RUNNING = 75
REFUSED = 76
# A task that is said to run elsewhere keeps its place no longer than this, in seconds, without another word.
DOUBT = 600
# How topics are read: as they are, for nobody's account.
READING = {"enable.auto.commit": False, "auto.offset.reset": "earliest", "allow.auto.create.topics": False}
# Clients of a process that we were forked from: to destroy them here would wait for threads that only it has.
_NOT_OURS: list = []
# Seconds that results may take of one round of the scheduler; some hundred results.
BUDGET = 0.01
# How long one question to a broker may take, in seconds; shorter than the time in which a task has to be sent.
CALL = 5
# How long a look at the topics may take when tasks are adopted, in seconds.
ADOPTION_PATIENCE = 20


class ClientLog:
    """What librdkafka has to say, as debug lines: it repeats itself, and what matters comes back as an error."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def log(self, level: int, text: str, *args: Any) -> None:
        """Called by the client."""
        self._log.debug(text, *args)


class Result(NamedTuple):
    """A record of the results topic."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    at: str


class Task(NamedTuple):
    """A task that is sent, or about to be."""

    send_id: str
    queue: str | None
    value: bytes
    since: float


def encode_key(key: TaskInstanceKey, send_id: str) -> bytes:
    """The record's key."""
    return json.dumps([*key, send_id], ensure_ascii=False).encode()


def decode_key(data: bytes | None) -> tuple[TaskInstanceKey, str | None] | None:
    """Task and send of a record's key; None: it is none of ours."""
    try:
        parts = json.loads(data or b"")
    except ValueError:
        return None
    types = (str, str, str, int, int, str)
    if not isinstance(parts, list) or not 5 <= len(parts) <= 6 or not all(map(isinstance, parts, types)):
        return None
    return TaskInstanceKey(*parts[:5]), parts[5] if len(parts) == 6 else None


def decode_outcome(result: Result) -> dict[str, Any] | None:
    """What is known of a command's end: `state` and, from a worker that tells, `reason`, `exit_code` and more."""
    told = dict(result.headers).get("airkafka-outcome") or result.value or b""
    word = told.decode("utf-8", "replace").strip()
    if word in ("success", "failed"):
        return {"state": word}
    try:
        outcome = json.loads(word)
    except ValueError:
        return None
    known = isinstance(outcome, dict) and outcome.get("state") in ("success", "failed")
    return outcome if known else None


def describe(outcome: dict[str, Any]) -> str:
    """A command's end in one line."""
    words = [str(outcome["state"])]
    for name in ("reason", "exit_code", "signal", "duration_ms", "host"):
        if outcome.get(name) is not None:
            words.append(f"{name}={outcome[name]}")
    if outcome.get("topic") is not None:
        words.append(f"command={outcome['topic']}-{outcome.get('partition')}@{outcome.get('offset')}")
    tail = str(outcome.get("error") or outcome.get("tail") or "").strip()
    return " ".join(words) + (f": {tail[-500:]}" if tail else "")


def reason(error: Exception) -> str:
    """An error in words; those of the Kafka client are objects in an exception."""
    inner = error.args[0] if error.args else None
    return inner.str() if hasattr(inner, "str") else str(error)


def topic_of(topic: str, queue: str | None, default_queue: str) -> str:
    """The topic for a queue: the topic itself for the default queue, TOPIC.QUEUE for others."""
    if queue in (None, "", default_queue):
        return topic
    name = f"{topic}.{queue}"
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name):
        raise ValueError(f"queue {queue!r} is no part of a topic's name; use letters, digits, '.', '_' and '-'")
    return name


def client_config(path: str, env: dict[str, str]) -> dict[str, str]:
    """Settings of librdkafka from a properties file; Java's names for TLS in PEM and for SASL are understood too."""
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    given: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line or line[0] in "#!":
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"{path}:{number}: no '=' in it; write NAME=VALUE")
        given[name.strip()] = _refer(value.strip(), env, f"{path}:{number}")
    settings: dict[str, str] = {}
    for name, value in given.items():
        if name == "sasl.jaas.config":
            words = dict(word.rstrip(";").partition("=")[::2] for word in shlex.split(value) if "=" in word)
            settings |= {f"sasl.{word}": words[word] for word in ("username", "password") if word in words}
        elif name in ("ssl.truststore.location", "ssl.keystore.location"):
            if given.get(name.replace("location", "type"), "").upper() != "PEM":
                raise ValueError(f"{path}: {name} has to be a PEM file; convert it and set {name[:-8]}type=PEM")
            if name == "ssl.truststore.location":
                settings["ssl.ca.location"] = value
            else:
                settings |= {"ssl.certificate.location": value, "ssl.key.location": value}
        elif name.startswith("airkafka."):
            raise ValueError(f"{path}: {name} is known to the worker alone; use sasl.oauthbearer.method=oidc here")
        elif name not in ("ssl.truststore.type", "ssl.keystore.type"):
            settings[name] = value
    return settings


def _refer(value: str, env: dict[str, str], where: str) -> str:
    """Puts in what `${env:NAME}` and `${file:PATH}` stand for."""

    def put_in(match: re.Match) -> str:
        kind, name = match.groups()
        if kind == "env":
            if name not in env:
                raise ValueError(f"{where}: the variable {name} is not set")
            return env[name]
        with open(name, encoding="utf-8") as file:
            return file.read().strip()

    return re.sub(r"\$\{(env|file):([^}]*)\}", put_in, value)


class Reader:
    """Reads the results topic, all partitions, from its end at the time of the start; no group, no commits.

    A thread does it. It says when it stands (`ready`): nothing is to be sent before, or its result could be missed.
    """

    def __init__(self, settings: dict[str, Any], topic: str, log: logging.Logger) -> None:
        self._settings = settings | {
            "group.id": f"{topic}-reader",  # librdkafka wants one; nobody joins it
            **READING,
        }
        self._topic = topic
        self._log = log
        self._results: deque[Result] = deque()
        self._positions: dict[int, int] | None = None
        self._rewind_to: int | None = None
        self._ended = threading.Event()
        self.ready = threading.Event()
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._run, name="airkafka-results", daemon=True)
        self._thread.start()

    def take(self, most: int) -> Iterable[Result]:
        """What has come."""
        for _ in range(most):
            try:
                yield self._results.popleft()  # one at a time: what is not asked for stays
            except IndexError:
                return

    def rewind(self, timestamp_ms: int) -> None:
        """Reads again what was written since then."""
        self._rewind_to = min(timestamp_ms, self._rewind_to or timestamp_ms)

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._read()
            except Exception as e:
                why = reason(e)
                if self.trouble is None:
                    self._log.warning("reading results from %s fails: %s; trying again", self._topic, why)
                self.trouble = why
                self._ended.wait(1)

    def _read(self) -> None:
        from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

        consumer = Consumer(self._settings, logger=ClientLog(self._log))
        # We are in no group: whether we may be in one does not matter.
        passed_over = (KafkaError._PARTITION_EOF, KafkaError.GROUP_AUTHORIZATION_FAILED)
        try:
            known = self._partitions(consumer)
            if self._positions is None:
                ends = {p: consumer.get_watermark_offsets(TopicPartition(self._topic, p), CALL)[1] for p in known}
                self._positions = ends
            listed = time.monotonic()
            assigned: set[int] = set()
            while not self._ended.is_set():
                if assigned != known:
                    places = [TopicPartition(self._topic, p, self._positions.setdefault(p, 0)) for p in sorted(known)]
                    consumer.assign(places)
                    assigned = set(known)
                    self.ready.set()
                if self._rewind_to is not None:
                    since, self._rewind_to = self._rewind_to, None
                    times = [TopicPartition(self._topic, p, since) for p in sorted(known)]
                    for place in consumer.offsets_for_times(times, CALL):
                        if 0 <= place.offset < self._positions[place.partition]:
                            self._positions[place.partition] = place.offset
                    assigned = set()
                    continue
                for message in consumer.consume(500, 0.2):
                    error = message.error()
                    if error is None:
                        at = f"{message.topic()}-{message.partition()}@{message.offset()}"
                        self._results.append(Result(message.key(), message.value(), message.headers() or [], at))
                        self._positions[message.partition()] = message.offset() + 1
                    elif error.code() not in passed_over and not error.retriable():
                        raise KafkaException(error)
                if self.trouble is not None:
                    self._log.warning("reading results from %s works again", self._topic)
                    self.trouble = None
                if time.monotonic() - listed > 60:
                    listed = time.monotonic()
                    known |= self._partitions(consumer)
        finally:
            consumer.close()

    def _partitions(self, consumer: Any) -> set[int]:
        topic = consumer.list_topics(self._topic, CALL).topics[self._topic]
        if topic.error is not None:
            raise RuntimeError(f"topic {self._topic}: {topic.error.str()}")
        return set(topic.partitions)


class KafkaExecutor(BaseExecutor):
    """See the top of this file."""

    supports_pickling = False
    supports_ad_hoc_ti_run = True
    is_local = False
    is_production = True
    serve_logs = False
    # From 3.2 on the scheduler makes the id, and stores it with the state `queued`.
    pre_assigns_external_executor_id = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kafka = lambda name, fallback=None: conf.get("kafka", name, fallback=fallback)  # noqa: E731
        self._brokers = kafka("broker_url", "localhost:9092")
        self._topic = kafka("topic", "AirflowKafkaTopic")
        self._results_topic = kafka("results_topic", "AirflowKafkaResultsTopic")
        self._client_config = kafka("client_config")
        self._send_timeout = float(kafka("send_timeout", "30"))
        self._default_queue = conf.get("operators", "default_queue", fallback="default")
        queued_timeout = float(conf.get("scheduler", "task_queued_timeout", fallback="600"))
        # Airflow revokes what is queued for longer; what is not started by then must not be started later.
        self._start_within = queued_timeout * 0.95
        self._sent: dict[TaskInstanceKey, Task] = {}
        self._unsent: list[TaskInstanceKey] = []
        self._doubtful: dict[TaskInstanceKey, float] = {}
        self._pid = 0
        self._producer: Any = None
        self._reader: Reader | None = None

    # --- sending ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Clients are made when they are needed, in the process that needs them; here their settings are looked at."""
        self._settings()
        self.log.info(
            "tasks go to topic %s of %s, results come from %s", self._topic, self._brokers, self._results_topic
        )

    def execute_async(
        self, key: TaskInstanceKey, command: list[str], queue: str | None = None, executor_config: Any = None
    ) -> None:
        """Airflow 2: sends `airflow tasks run ...`."""
        send_id = str(uuid.uuid4())
        self.event_buffer[key] = (TaskInstanceState.QUEUED, send_id)  # `self.queued` would drop it from `running`
        self._enqueue(key, send_id, queue, ["airflow", str(key.try_number)], command=["--", *command])

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        """Airflow 3: sends workloads."""
        for workload in workload_items:
            key = workload.key
            if self.queued_tasks.pop(key, None) is None:
                self.log.error("%s: workloads of this type are not run by this executor", key)
                continue
            self.running.add(key)
            send_id = getattr(workload.ti, "external_executor_id", None)
            if send_id is None:
                send_id = uuid.uuid4()
                self.event_buffer[key] = (TaskInstanceState.QUEUED, str(send_id))
            self._enqueue(key, str(send_id), workload.ti.queue, ["workload"], stdin=workload.model_dump_json())

    def _enqueue(
        self,
        key: TaskInstanceKey,
        send_id: str,
        queue: str | None,
        words: list[str],
        command: Sequence[str] = (),
        stdin: str | None = None,
    ) -> None:
        not_after = int(time.time() + self._start_within)
        value: dict[str, Any] = {"command": [ENTRY, *words, "--send", send_id, "--not-after", str(not_after), *command]}
        if stdin is not None:
            value["stdin"] = stdin
        elif command:
            value["env"] = {"external_executor_id": send_id}
        data = json.dumps(value, ensure_ascii=False).encode()
        self._sent[key] = Task(send_id, queue, data, time.monotonic())
        self._unsent.append(key)
        self._doubtful.pop(key, None)

    def _send_what_waits(self) -> None:
        waiting, self._unsent = self._unsent, []
        for key in waiting:
            task = self._sent.get(key)
            if task is None:
                continue  # revoked meanwhile
            reader = self._connect_reader()
            if not reader.ready.is_set():
                if time.monotonic() - task.since > self._send_timeout:
                    why = reader.trouble or "the brokers do not answer"
                    self._give_up(key, task, f"topic {self._results_topic} cannot be read: {why}")
                else:
                    self._unsent.append(key)
                continue
            try:
                topic = topic_of(self._topic, task.queue, self._default_queue)
                told = partial(self._delivered, key, task, topic)
                self._connect_producer().produce(topic, task.value, encode_key(key, task.send_id), on_delivery=told)
            except Exception as e:
                self._give_up(key, task, reason(e))

    def _delivered(self, key: TaskInstanceKey, task: Task, topic: str, error: Any, message: Any) -> None:
        if error is not None:
            if self._sent.get(key) is task:
                self._give_up(key, task, f"topic {topic}: {error.str()}")
            return
        at = f"{message.topic()}-{message.partition()}@{message.offset()}"
        self.log.info("sent %s as %s send=%s", key, at, task.send_id)

    def _give_up(self, key: TaskInstanceKey, task: Task, why: str) -> None:
        """A task that cannot be sent goes back to the scheduler, which retries it or fails it."""
        why = f"not sent to Kafka ({self._brokers}): {why}"
        self.log.error("%s send=%s: %s", key, task.send_id, why)
        self._sent.pop(key, None)
        self.fail(key, why)

    # --- results ---------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Called by the scheduler in its loop."""
        self._own_clients()
        if self._unsent or self._sent:
            self._connect_reader()
        if self._unsent:
            self._send_what_waits()
        if self._producer is not None:
            self._producer.poll(0)
        if self._reader is not None:
            enough = time.monotonic() + BUDGET
            for result in self._reader.take(1000):
                self._apply(result)
                if time.monotonic() > enough:
                    break  # the scheduler has other things to do; the rest in its next round
        now = time.monotonic()
        for key in [key for key, since in self._doubtful.items() if now - since > DOUBT]:
            self._forget(key)
            self.log.warning("%s is said to run elsewhere, and nothing more is heard of it: let Airflow see", key)

    def _apply(self, result: Result) -> None:
        decoded = decode_key(result.key)
        if decoded is None:
            self.log.debug("%s is no result of a task: key %r", result.at, result.key)
            return
        key, send_id = decoded
        task = self._sent.get(key)
        if task is None or key not in self.running:
            self.log.debug("%s is not awaited here: %s", result.at, key)
            return
        if send_id not in (None, task.send_id):
            self.log.debug("%s is of another send of %s: %s, not %s", result.at, key, send_id, task.send_id)
            return
        outcome = decode_outcome(result)
        if outcome is None:
            self.log.warning("%s cannot be understood: %r", result.at, result.value)
            return
        info = describe(outcome)
        code = outcome.get("exit_code") if outcome.get("reason") == "exit" else None
        if code == ALREADY_RUNNING:
            self.log.info("%s runs already, said by its record's repetition (%s)", key, info)
            self._doubtful.setdefault(key, time.monotonic())
        elif code == REFUSED:
            self.log.warning("%s is not to be run any more, which Airflow knows best (%s)", key, info)
            self._forget(key)
        else:
            self.log.info("%s ended: %s result=%s send=%s", key, info, result.at, task.send_id)
            self._forget(key, keep_running=True)
            if outcome["state"] == "success":
                self.success(key)
            else:
                self.fail(key, info)

    def _forget(self, key: TaskInstanceKey, keep_running: bool = False) -> None:
        self._sent.pop(key, None)
        self._doubtful.pop(key, None)
        if not keep_running:
            self.running.discard(key)

    # --- what else a scheduler asks for ----------------------------------------------------------------------------

    def try_adopt_task_instances(self, tis: Sequence[Any]) -> Sequence[Any]:
        """Takes over tasks of a scheduler that is gone: those whose record is there. Their results are read again."""
        candidates = {str(ti.external_executor_id): ti for ti in tis if ti.external_executor_id}
        if not candidates:
            return tis
        oldest = min((ti.queued_dttm.timestamp() for ti in candidates.values() if ti.queued_dttm), default=time.time())
        since_ms = int((oldest - 60) * 1000)
        there = self._sends_since(since_ms, {self._topic_for(ti) for ti in candidates.values()})
        adopted = []
        for send_id, ti in candidates.items():
            if there is None or send_id in there:
                self.running.add(ti.key)
                self._sent[ti.key] = Task(send_id, ti.queue, b"", time.monotonic())
                adopted.append(ti)
            else:
                self.log.warning("%s send=%s never came to Kafka: not adopted", ti.key, send_id)
        if adopted:
            self._connect_reader().rewind(since_ms)
            self.log.info("adopted %d task(s): %s", len(adopted), ", ".join(str(ti.key) for ti in adopted))
        return [ti for ti in tis if ti not in adopted]

    def _topic_for(self, ti: Any) -> str:
        try:
            return topic_of(self._topic, ti.queue, self._default_queue)
        except ValueError:
            return self._topic

    def _sends_since(self, since_ms: int, topics: set[str]) -> set[str] | None:
        """The ids of all sends since then; None: they cannot be read."""
        from confluent_kafka import Consumer, TopicPartition

        deadline = time.monotonic() + ADOPTION_PATIENCE
        settings = self._settings() | {
            "group.id": f"{self._topic}-adoption",
            **READING,
            "enable.partition.eof": True,
        }
        sends: set[str] = set()
        try:
            consumer = Consumer(settings, logger=ClientLog(self.log))
            try:
                places = []
                for topic in topics:
                    known = consumer.list_topics(topic, ADOPTION_PATIENCE).topics[topic]
                    if known.error is None:
                        places += [TopicPartition(topic, p, since_ms) for p in known.partitions]
                places = consumer.offsets_for_times(places, ADOPTION_PATIENCE) if places else []
                open_ones = {(place.topic, place.partition) for place in places}
                consumer.assign(places)
                while open_ones:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"not read within {ADOPTION_PATIENCE} s")
                    for message in consumer.consume(1000, 0.5):
                        if message.error() is not None:
                            open_ones.discard((message.topic(), message.partition()))
                            continue
                        decoded = decode_key(message.key())
                        if decoded is not None and decoded[1] is not None:
                            sends.add(decoded[1])
            finally:
                consumer.close()
        except Exception as e:
            self.log.warning("which of the tasks to adopt were sent cannot be read: %s; adopting them", reason(e))
            return None
        return sends

    def revoke_task(self, *, ti: Any) -> None:
        """Forgets a task that was queued for too long. Its record is not started any more: its time is over."""
        self.queued_tasks.pop(ti.key, None)
        task = self._sent.get(ti.key)
        self._forget(ti.key)
        self.log.warning("revoked %s send=%s: no worker has started it in time", ti.key, task and task.send_id)

    def end(self) -> None:
        """Sends what is to be sent; what runs is for the next scheduler."""
        deadline = time.monotonic() + 10
        while self._unsent and time.monotonic() < deadline:
            self.sync()
            time.sleep(0.05)
        if self._producer is not None and self._pid == os.getpid():
            left = self._producer.flush(max(0.1, deadline - time.monotonic()))
            if left:
                self.log.error("%d task(s) could not be sent before the end", left)
        self.sync()
        self.terminate()

    def terminate(self) -> None:
        """Ends at once."""
        if self._reader is not None and self._pid == os.getpid():
            self._reader.close()
        self._forget_clients()

    # --- clients ---------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"client.id": "airflow-kafka-executor"}
        if self._client_config:
            settings |= client_config(self._client_config, dict(os.environ))
        return settings | {"bootstrap.servers": self._brokers}

    def _connect_producer(self) -> Any:
        self._own_clients()
        if self._producer is None:
            from confluent_kafka import Producer

            settings = self._settings() | {
                "enable.idempotence": True,
                "linger.ms": 0,
                "message.timeout.ms": int(self._send_timeout * 1000),
            }
            self._producer = Producer(settings, logger=ClientLog(self.log))
        return self._producer

    def _connect_reader(self) -> Reader:
        self._own_clients()
        if self._reader is None:
            self._reader = Reader(self._settings(), self._results_topic, self.log)
        return self._reader

    def _own_clients(self) -> None:
        if self._pid != os.getpid():
            self._forget_clients()  # after a fork: they are our parent's
            self._pid = os.getpid()

    def _forget_clients(self) -> None:
        if self._pid != os.getpid():
            _NOT_OURS.extend((self._producer, self._reader))
        self._producer = None
        self._reader = None
        self._pid = 0
