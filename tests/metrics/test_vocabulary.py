from __future__ import annotations

import struct

from spearpool.errors import ErrorCode
from spearpool.metrics.layout import (
    COUNTER_WORDS,
)
from spearpool.metrics.vocabulary import (
    CLOSE_REASONS,
    CLOSED,
    COUNTERS,
    EXECUTION_COUNTERS,
    FINAL_STAGES,
    INSTANCE_COUNTERS,
    LIMIT_FIELDS,
    LIMIT_SLOTS,
    LIMITS,
    NAME_BYTES,
    RECORD_BYTES,
    RECORD_FIELDS,
    RECORD_FORMAT,
    ROW_FIELDS,
    ROW_LABEL_WORD,
    ROW_LIMITS_WORD,
    ROW_STAGES,
    ROW_WORDS,
    TASK_COUNTERS,
    TASK_WORDS,
    EventKind,
    ExecutionStage,
    InstanceStage,
    WorkerStage,
)
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import MessageType


def test_every_reason_type_and_code_has_its_counter() -> None:
    expected = (
        {f"connections_closed_{reason.value}" for reason in CloseReason}
        | {f"messages_{way}_{kind.name.lower()}" for way in ("in", "out") for kind in MessageType}
        | {f"errors_{code.value}" for code in ErrorCode}
    )
    assert expected < set(COUNTERS)
    assert len(set(COUNTERS)) == len(COUNTERS) <= COUNTER_WORDS
    assert [COUNTERS[place] for place in CLOSED] == [f"connections_closed_{reason.value}" for reason in CLOSE_REASONS]


def test_stages_are_event_kinds_in_the_same_order() -> None:
    for stages, first, head in (
        (ExecutionStage, EventKind.EXECUTION_RECEIVED, "EXECUTION_"),
        (InstanceStage, EventKind.INSTANCE_REQUESTED, "INSTANCE_"),
        (WorkerStage, EventKind.WORKER_SPAWNED, "WORKER_"),
    ):
        assert [EventKind(first + stage).name for stage in stages] == [head + stage.name for stage in stages]
        assert {kind for kind in EventKind if kind.name.startswith(head)} == {first + stage for stage in stages}


def test_stages_of_an_execution_are_the_first_counters_of_a_task() -> None:
    stages = tuple(stage.name.lower() for stage in ExecutionStage)
    assert TASK_COUNTERS[: len(stages)] == stages == EXECUTION_COUNTERS
    assert TASK_COUNTERS[len(stages) :] == tuple(INSTANCE_COUNTERS.values())
    assert len(set(TASK_COUNTERS)) == len(TASK_COUNTERS) <= TASK_WORDS
    ends = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "LOST", "REFUSED"}
    assert {stage.name for stage in FINAL_STAGES} == ends


def test_a_record_fills_its_cache_line_field_by_field() -> None:
    assert struct.calcsize(RECORD_FORMAT) == RECORD_BYTES == 64
    for _, code, dtype in RECORD_FIELDS:
        assert struct.calcsize(code) == int(dtype[-1])


def test_the_parts_of_an_instance_row_do_not_overlap() -> None:
    assert len(ROW_FIELDS) <= ROW_LIMITS_WORD
    assert list(ROW_STAGES) == sorted(ROW_STAGES) == list(range(len(ROW_STAGES))), "a stage is its own place"
    assert len(LIMITS) <= LIMIT_SLOTS
    assert ROW_LIMITS_WORD + LIMIT_SLOTS * len(LIMIT_FIELDS) <= ROW_LABEL_WORD
    assert ROW_LABEL_WORD + NAME_BYTES // 8 <= ROW_WORDS
