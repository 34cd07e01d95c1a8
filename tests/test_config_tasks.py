"""Settings of a task: targets are words, and its own limits go over the pool's."""

from __future__ import annotations

import pytest

from spearpool.config_tasks import ResourceLimits, Target, TargetKind, TaskConfig


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("python:a.b:c.d", TargetKind.PYTHON, ("a.b", "c.d")),
        ("exec:cat", TargetKind.EXEC, ("cat",)),
        ("exec:sh -c 'echo \"a b\"'", TargetKind.EXEC, ("sh", "-c", 'echo "a b"')),
        ("agent:./my agent.py", TargetKind.AGENT, ("./my", "agent.py")),
        ("exec:prog a:b", TargetKind.EXEC, ("prog", "a:b")),
    ],
)
def test_targets_are_parsed(text: str, kind: TargetKind, words: tuple[str, ...]) -> None:
    target = Target.parse(text)
    assert (target.kind, target.words) == (kind, words)
    assert TaskConfig(target=text).parsed_target == target


def test_limits_that_are_set_go_over_those_below() -> None:
    below = ResourceLimits(memory_bytes=2**30, nice=5)
    assert ResourceLimits(nice=0, open_files=64).over(below) == ResourceLimits(
        memory_bytes=2**30, nice=0, open_files=64
    )
    assert ResourceLimits().over(below) == below
