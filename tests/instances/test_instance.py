from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

from spearpool.config import ResourceLimits, TaskConfig
from spearpool.instances.instance import Instance, InstanceView
from spearpool.instances.lifecycle import Lifecycle, Phase
from spearpool.instances.logs import InstanceLog
from spearpool.instances.places import Place
from spearpool.instances.progress import Progress
from spearpool.processes import ProcessIdentity
from spearpool.protocol.identifiers import InstanceId

ID = InstanceId(3, 7)


def test_how_it_looks_from_outside(tmp_path: Path) -> None:
    config = TaskConfig(target="exec:true")
    log = InstanceLog(tmp_path, "t-3-7")
    lifecycle, progress = Lifecycle(config, 0.0), Mock(spec=Progress)
    instance = Instance(ID, "t-3-7", "t", config, ResourceLimits(), Place(), lifecycle, progress, log, launch=1)
    assert instance.view() == InstanceView(ID, "t-3-7", "t", None, "starting", Phase.WAITING)
    instance.lifecycle.launching()
    instance.identity = ProcessIdentity(99, 1)
    assert instance.view() == InstanceView(ID, "t-3-7", "t", 99, "starting", Phase.LAUNCHING)
    assert not instance.was_ready
    instance.lifecycle.claimed(1.0)
    assert instance.view() == InstanceView(ID, "t-3-7", "t", 99, "ready", Phase.READY)
    instance.lifecycle.released(2.0)
    assert instance.state == "starting"
    instance.lifecycle.stop(3.0)
    assert instance.view() == InstanceView(ID, "t-3-7", "t", 99, "stopping", Phase.TERMINATED)
    assert instance.was_ready
