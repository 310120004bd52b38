"""The executor without Airflow running and without Kafka: what it sends, and what it makes of what comes."""

from __future__ import annotations

import json
import os
import types

import pytest
from airflow import __version__ as AIRFLOW
from airflow.models.taskinstancekey import TaskInstanceKey

import kafka_executor_plugin as plugin
from kafka_executor_plugin import KafkaExecutor, Result, client_config, decode_key, decode_outcome, encode_key, topic_of

KEY = TaskInstanceKey("dag", "größe_タスク", "scheduled__2026-01-01T00:00:00+00:00", 2, 3)
IS_2 = AIRFLOW.startswith("2.")


class FakeProducer:
    """Keeps what is produced; `answer` is told the delivery."""

    def __init__(self):
        self.sent = []

    def produce(self, topic, value, key, on_delivery):
        self.sent.append((topic, key, json.loads(value), on_delivery))

    def poll(self, timeout):
        return 0

    def flush(self, timeout):
        return 0


class FakeReader:
    """Stands, and gives what a test puts in."""

    def __init__(self):
        self.results = []
        self.ready = types.SimpleNamespace(is_set=lambda: self.is_ready)
        self.is_ready = True
        self.trouble = None
        self.rewound = []

    def take(self, most):
        taken, self.results = self.results[:most], self.results[most:]
        return taken

    def rewind(self, timestamp_ms):
        self.rewound.append(timestamp_ms)

    def close(self):
        pass


@pytest.fixture
def executor(monkeypatch):
    executor = KafkaExecutor(parallelism=4)
    executor.producer, executor.reader = FakeProducer(), FakeReader()
    monkeypatch.setattr(executor, "_connect_producer", lambda: executor.producer)
    monkeypatch.setattr(executor, "_connect_reader", lambda: executor.reader)
    executor._producer, executor._reader, executor._pid = executor.producer, executor.reader, os.getpid()
    return executor


def send(executor, key=KEY, queue="default"):
    """As the base class does; returns the id."""
    executor.execute_async(key, ["airflow", "tasks", "run", *key[:3], "--local"], queue)
    executor.running.add(key)
    executor.sync()
    return executor._sent[key].send_id if key in executor._sent else None


def result(executor, send_id, state="success", key=KEY, **outcome):
    data = json.dumps({"state": state, "reason": "exit", "exit_code": 0 if state == "success" else 1, **outcome})
    executor.reader.results.append(
        Result(encode_key(key, send_id), state.encode(), [("airkafka-outcome", data.encode())], "results-0@1")
    )
    executor.sync()


def events(executor):
    return {key: str(getattr(state, "value", state)) for key, (state, _) in executor.get_event_buffer().items()}


def test_a_key_comes_back_as_it_went():
    data = encode_key(KEY, "id")
    assert decode_key(data) == (KEY, "id")
    assert "größe_タスク" in data.decode()
    assert decode_key(json.dumps(list(KEY)).encode()) == (KEY, None)


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"x",
        b"{}",
        b"[]",
        b"\xff",
        b'["d","t","r",1]',
        b'["d","t","r","1",-1,"i"]',
        b'["d","t","r",1,-1,"i",0]',
        b"('dag', 'task', '2026-01-01')",
    ],
)
def test_a_foreign_key_is_told(data):
    assert decode_key(data) is None


def test_an_outcome_is_read_from_the_header_or_the_value():
    header = [("other", b"x"), ("airkafka-outcome", b'{"state":"failed","exit_code":75}')]
    assert decode_outcome(Result(b"", b"failed", header, ""))["exit_code"] == 75
    assert decode_outcome(Result(b"", b'{"state":"success"}', [], "")) == {"state": "success"}
    assert decode_outcome(Result(b"", b"failed", [], "")) == {"state": "failed"}
    for value in (None, b"", b"done", b"[]", b'{"state":"odd"}', b"\xff"):
        assert decode_outcome(Result(b"", value, [], "")) is None


def test_a_queue_has_its_own_topic():
    assert topic_of("commands", "default", "default") == topic_of("commands", None, "default") == "commands"
    assert topic_of("commands", "gpu", "default") == "commands.gpu"
    with pytest.raises(ValueError, match="no part of a topic's name"):
        topic_of("commands", "a b", "default")


@pytest.mark.skipif(not IS_2, reason="Airflow 3 has no commands")
def test_a_command_of_airflow_2_is_sent_as_it_is(executor):
    send_id = send(executor, queue="gpu")
    [(topic, key, value, _)] = executor.producer.sent
    assert (topic, decode_key(key)) == ("AirflowKafkaTopic.gpu", (KEY, send_id))
    command = value["command"]
    assert command[:5] == ["airkafka-task", "airflow", "2", "--send", send_id]
    assert command[7:] == ["--", "airflow", "tasks", "run", *KEY[:3], "--local"]
    assert value["env"] == {"external_executor_id": send_id}
    assert executor.event_buffer[KEY] == ("queued", send_id)


@pytest.mark.skipif(IS_2, reason="Airflow 2 has no workloads")
def test_a_workload_of_airflow_3_travels_on_stdin(executor):
    ti = types.SimpleNamespace(queue="gpu", external_executor_id="the-id")
    workload = types.SimpleNamespace(key=KEY, ti=ti, model_dump_json=lambda: '{"token":"secret"}')
    executor.queued_tasks[KEY] = workload
    executor._process_workloads([workload])
    executor.sync()
    [(topic, key, value, _)] = executor.producer.sent
    assert (topic, decode_key(key)) == ("AirflowKafkaTopic.gpu", (KEY, "the-id"))
    assert value["command"][:4] == ["airkafka-task", "workload", "--send", "the-id"]
    assert value["stdin"] == '{"token":"secret"}'
    assert "secret" not in str(value["command"])
    assert (KEY in executor.running, KEY in executor.queued_tasks, executor.event_buffer) == (True, False, {})


def test_a_result_counts_once_and_only_for_its_own_send(executor):
    send_id = send(executor)
    executor.get_event_buffer()
    result(executor, "another")
    result(executor, send_id, key=TaskInstanceKey("dag", "other", "run", 1, -1))
    executor.reader.results.append(Result(b"foreign", b"success", [], ""))
    executor.reader.results.append(Result(encode_key(KEY, send_id), b"what?", [], ""))
    executor.sync()
    assert (events(executor), executor.running) == ({}, {KEY})
    result(executor, send_id)
    assert (events(executor), executor.running) == ({KEY: "success"}, set())
    result(executor, send_id, "failed")
    assert events(executor) == {}


def test_a_word_without_an_id_is_accepted(executor):
    send(executor)
    executor.get_event_buffer()
    executor.reader.results.append(Result(json.dumps(list(KEY)).encode(), b"failed", [], ""))
    executor.sync()
    assert (events(executor), executor.running) == ({KEY: "failed"}, set())


def test_a_repetition_causes_no_event_and_the_true_end_does(executor):
    send_id = send(executor)
    executor.get_event_buffer()
    result(executor, send_id, "failed", exit_code=75)
    assert (events(executor), executor.running) == ({}, {KEY})
    result(executor, send_id)
    assert events(executor) == {KEY: "success"}


def test_a_repetition_without_an_end_does_not_hold_its_place_for_ever(executor, monkeypatch):
    send_id = send(executor)
    executor.get_event_buffer()
    result(executor, send_id, "failed", exit_code=75)
    monkeypatch.setattr(plugin, "DOUBT", -1)
    executor.sync()
    assert (events(executor), executor.running) == ({}, set())


def test_a_refused_task_is_forgotten_without_an_event(executor):
    send_id = send(executor)
    executor.get_event_buffer()
    result(executor, send_id, "failed", exit_code=76)
    assert (events(executor), executor.running) == ({}, set())
    # A command that was killed, or timed out, is no refusal, whatever its number.
    send_id = send(executor)
    executor.get_event_buffer()
    result(executor, send_id, "failed", reason="timeout", exit_code=76)
    assert events(executor) == {KEY: "failed"}


def test_what_cannot_be_delivered_fails_with_the_reason(executor):
    send(executor)
    executor.get_event_buffer()
    *_, on_delivery = executor.producer.sent[0]
    on_delivery(types.SimpleNamespace(str=lambda: "Local: Message timed out"), None)
    [(state, info)] = executor.get_event_buffer().values()
    assert (str(getattr(state, "value", state)), executor.running) == ("failed", set())
    assert "Message timed out" in info
    assert "AirflowKafkaTopic" in info


def test_nothing_is_sent_before_results_can_be_read(executor):
    executor.reader.is_ready = False
    send(executor)
    assert executor.producer.sent == []
    executor.reader.is_ready = True
    executor.sync()
    assert len(executor.producer.sent) == 1
    # And if they never can be, the task goes back.
    executor.reader.is_ready, executor.reader.trouble = False, "no broker"
    executor._send_timeout = -1
    other = TaskInstanceKey("dag", "other", "run", 1, -1)
    send(executor, other)
    assert events(executor)[other] == "failed"
    assert other not in executor.running


def test_a_queue_that_is_no_topic_fails_the_task(executor):
    send(executor, queue="a b")
    assert executor.producer.sent == []
    [(_state, info)] = executor.get_event_buffer().values()
    assert "no part of a topic's name" in info


def test_a_revoked_task_is_forgotten(executor):
    send_id = send(executor)
    executor.get_event_buffer()
    executor.revoke_task(ti=types.SimpleNamespace(key=KEY))
    result(executor, send_id)
    assert (events(executor), executor.running, executor._sent) == ({}, set(), {})


def adoptable(send_id, key=KEY):
    return types.SimpleNamespace(key=key, external_executor_id=send_id, queue="default", queued_dttm=None)


def test_tasks_are_adopted_by_their_send_and_their_results_are_read_again(executor, monkeypatch):
    other = TaskInstanceKey("dag", "other", "run", 1, -1)
    third = TaskInstanceKey("dag", "third", "run", 1, -1)
    tis = [adoptable("here"), adoptable("never-sent", other), adoptable(None, third)]
    monkeypatch.setattr(executor, "_sends_since", lambda since, topics: {"here"})
    assert executor.try_adopt_task_instances(tis) == tis[1:]
    assert (executor.running, len(executor.reader.rewound)) == ({KEY}, 1)
    result(executor, "here")
    assert events(executor) == {KEY: "success"}
    # Where that cannot be read they are adopted: better late than twice.
    monkeypatch.setattr(executor, "_sends_since", lambda since, topics: None)
    assert executor.try_adopt_task_instances(tis[:2]) == []


def test_clients_are_not_shared_over_a_fork(monkeypatch):
    executor = KafkaExecutor(parallelism=4)
    made = []
    monkeypatch.setattr(plugin, "Reader", lambda *args: made.append(os.getpid()) or FakeReader())
    executor._connect_reader()
    executor._connect_reader()
    pid = os.fork()
    if pid == 0:
        executor._connect_reader()
        os._exit(0 if made == [os.getppid(), os.getpid()] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert made == [os.getpid()]


def test_a_properties_file_has_librdkafkas_names_or_javas(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("from a file\n")
    file = tmp_path / "client.properties"
    file.write_text(
        "# comment\n\nsecurity.protocol=SASL_SSL\nsasl.mechanism = SCRAM-SHA-512\nssl.truststore.type=PEM\n"
        "ssl.truststore.location=/ca.pem\nssl.key.password=${env:KEYPASS}\n"
        'sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username="u" '
        f'password="${{file:{secret}}}";\n'
    )
    assert client_config(str(file), {"KEYPASS": "from the environment"}) == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "ssl.ca.location": "/ca.pem",
        "ssl.key.password": "from the environment",
        "sasl.username": "u",
        "sasl.password": "from a file",
    }
    for text, why in [
        ("a\n", "no '='"),
        ("a=${env:NOT_THERE}\n", "NOT_THERE is not set"),
        ("ssl.truststore.location=/x.jks\n", "has to be a PEM file"),
        ("airkafka.token.command=x\n", "known to the worker alone"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=why):
            client_config(str(file), {})
