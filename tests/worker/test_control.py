from __future__ import annotations

import os
import select
from typing import get_args

import pytest

from spearpool.channel import ChannelClosed
from spearpool.config import Settings, TaskConfig
from spearpool.packing import Record
from spearpool.worker import control
from spearpool.worker.control import Claim, FromWorker, Key, Link, Ready, Setup, ToWorker, supervisor_end, worker_end

SETTINGS = Settings(tasks={"echo": TaskConfig(target="python:a:b", environment={"A": "ü"})})


def example(kind: type[Record]) -> Record:
    """A record with a different value in each field."""
    values: dict[str, object] = {
        "settings": SETTINGS,
        "keys": [Key("k", b"\0secret")],
        "revoked": ["a", "b"],
        "available": True,
        "deadline_s": 1.5,
    }
    texts = {"reason", "task", "signal", "instance_id", "execution_id"}
    return kind(
        **{
            name: values.get(name, f"text {number}" if name in texts else number)
            for number, name in enumerate(kind.__struct_fields__, 1)
        }
    )


@pytest.mark.parametrize("kind", get_args(ToWorker), ids=lambda kind: kind.__name__)
def test_the_supervisors_records_arrive_whole(kind: type[ToWorker]) -> None:
    ours, theirs = control.SupervisorEnd.pair()
    with ours, theirs:
        record = example(kind)
        supervisor_end(ours).send(record)  # type: ignore[arg-type]
        assert worker_end(theirs).receive() == (record, [])


@pytest.mark.parametrize("kind", get_args(FromWorker), ids=lambda kind: kind.__name__)
def test_the_workers_records_arrive_whole(kind: type[FromWorker]) -> None:
    ours, theirs = control.SupervisorEnd.pair()
    with ours, theirs:
        record = example(kind)
        worker_end(theirs).send(record)  # type: ignore[arg-type]
        assert supervisor_end(ours).receive() == (record, [])


def test_descriptors_come_with_their_record() -> None:
    ours, theirs = control.SupervisorEnd.pair()
    reader, writer = os.pipe()
    with ours, theirs:
        supervisor_end(ours).send(Link(1, 2, 3), [writer])
        os.close(writer)
        received = worker_end(theirs).receive()
        assert received is not None
        record, (arrived,) = received
        assert record == Link(1, 2, 3)
        os.write(arrived, b"x")
        assert os.read(reader, 1) == b"x"
        os.close(arrived)
    os.close(reader)


def test_the_other_ends_death_is_seen() -> None:
    ours, theirs = control.SupervisorEnd.pair()
    worker = worker_end(theirs)
    with theirs:
        supervisor_end(ours).close()
        assert select.select([worker], [], [], 5.0)[0]
        with pytest.raises(ChannelClosed):
            worker.receive()
        with pytest.raises(ChannelClosed):
            worker.send(Ready(1))


def test_each_end_refuses_the_others_records() -> None:
    ours, theirs = control.SupervisorEnd.pair()
    with ours, theirs:
        worker_end(ours).send(Claim(1, 2, 3, 4, 5))
        with pytest.raises(Exception, match="Claim"):
            worker_end(theirs).receive()


def test_setup_fits_the_channel_with_every_task() -> None:
    tasks = {f"task-{number}": SETTINGS.tasks["echo"] for number in range(56)}
    setup = Setup(0, 0, 1, 2, Settings(tasks=tasks), [Key("k", b"s" * 32)] * 2, [f"token-{n}" for n in range(1000)])
    ours, theirs = control.SupervisorEnd.pair()
    with ours, theirs:
        supervisor_end(ours).send(setup)
        assert worker_end(theirs).receive() == (setup, [])
