"""The house as it is built: floors, circles, doors, one test module per module; and the checks themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import architecture
from tests.architecture import (
    CHECKS,
    LIGHT,
    check_circles,
    check_declared_packages,
    check_doors,
    check_exports,
    check_floors,
    check_lengths,
    check_names,
    check_outside_references,
    check_test_modules,
    loaded_packages,
)

ROOT = Path(__file__).parents[1]

Check = Callable[[Path], list[str]]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_this_checkout_keeps_the_rule(check: Check) -> None:
    found = check(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module", LIGHT)
def test_an_import_stays_light(module: str) -> None:
    assert loaded_packages(module, ROOT) & LIGHT[module] == set()


def plant(root: Path, **files: str) -> Path:
    """A tree of small files; `__` in a name is a `/`, a missing suffix is `.py`, `init.py` is `__init__.py`."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ("" if "." in name else ".py"))
        path = path.with_name("__init__.py") if path.name == "init.py" else path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# What a file says · the check · what it finds. The tree around it is in order.
BROKEN: list[tuple[dict[str, str], Check, str]] = [
    (
        {"spearpool__protocol__codec": "import spearpool.worker.main"},
        check_floors,
        "floor 1 imports spearpool.worker.main",
    ),
    (
        {"spearpool__protocol__codec": "from spearpool.worker import main"},
        check_floors,
        "spearpool.worker.main of floor 3",
    ),
    ({"spearpool__config": "from .protocol import codec"}, check_floors, "floor 0 imports spearpool.protocol.codec"),
    ({"spearpool__client__pool": "from spearpool.worker.main import x"}, check_floors, "imports spearpool.worker.main"),
    (
        {"spearpool__worker__main": "def f():\n    from spearpool.cli import x"},
        check_floors,
        "main.py:2: floor 3 imports",
    ),
    (
        {"spearpool__worker__main": "if TYPE_CHECKING:\n    from spearpool.cli import x"},
        check_floors,
        "main.py:2: floor 3 imports",
    ),
    ({"spearpool__worker__main": "from spearpool import Client"}, check_floors, "imports spearpool of floor 6"),
    ({"spearpool__worker__main": "from ..cli import x"}, check_floors, "imports spearpool.cli"),
    ({"spearpool__attic__x": ""}, check_floors, "'attic' stands on no floor"),
    ({"spearpool__worker__main": "import spearpool.attic"}, check_floors, "spearpool.attic of floor 99"),
    (
        {"spearpool__worker__a": "from . import b", "spearpool__worker__b": "from .a import x"},
        check_circles,
        "circle: worker.",
    ),
    (
        {
            "spearpool__worker__a": "from .b import x",
            "spearpool__worker__b": "from .c import x",
            "spearpool__worker__c": "if TYPE_CHECKING:\n    from .a import x",
        },
        check_circles,
        "circle: worker.",
    ),
    (
        {"spearpool__worker__init.py": "from .a import x", "spearpool__worker__a": "from spearpool.worker import y"},
        check_circles,
        "circle: worker",
    ),
    (
        {"spearpool__config": "from .errors import x", "spearpool__errors": "import spearpool.config"},
        check_circles,
        "circle",
    ),
    ({"spearpool__worker__main": "import numpy as np"}, check_doors, "imports numpy; its door is metrics.rollup"),
    (
        {"spearpool__worker__main": "from zmq.asyncio import Context"},
        check_doors,
        "imports zmq; its door is metrics.bus",
    ),
    (
        {"spearpool__worker__main": "def f():\n    import requests"},
        check_doors,
        "imports requests; its door is unknown",
    ),
    ({"spearpool__protocolx": "import msgspec"}, check_doors, "imports msgspec; its door is packing or protocol"),
    (
        {"pyproject.toml": "[project]\ndependencies = ['click>=8', 'left-pad']"},
        check_declared_packages,
        "left-pad has no door",
    ),
    ({"pyproject.toml": "[project]\ndependencies = ['click>=8']"}, check_declared_packages, "pyzmq is not declared"),
    ({"spearpool__worker__new": ""}, check_test_modules, "spearpool/worker/new.py: no tests/worker/test_new.py"),
    (
        {"tests__worker__test_old": "", "tests__worker__init.py": ""},
        check_test_modules,
        "test_old.py: there is no module",
    ),
    ({"tests__stateful__test_all": ""}, check_test_modules, "tests/stateful: no __init__.py"),
    ({"tests__test_main": ""}, check_test_modules, "tests/test_main.py: there is no module"),
    ({"spearpool__worker__main": "x = 1\n" * 401}, check_lengths, "spearpool/worker/main.py: 401 lines"),
    ({"tools__loadtest": "x = 1\n" * 401}, check_lengths, "tools/loadtest.py: 401 lines"),
    ({"spearpool__worker__main": "x = 1"}, check_exports, "spearpool/worker/main.py: no __all__"),
    ({"spearpool__worker__init.py": "from .main import x"}, check_exports, "spearpool/worker/__init__.py: no __all__"),
    ({"spearpool__worker__utils": ""}, check_names, "spearpool/worker/utils.py: a name that says nothing"),
    ({"spearpool__common__x": ""}, check_names, "spearpool/common/x.py: a name that says nothing"),
    (
        {"spearpool__worker__main": "open('../shared/x')"},
        check_outside_references,
        "main.py:1: refers to what is outside",
    ),
    ({"README.md": "see\n../shared/DESIGN.md"}, check_outside_references, "README.md:2: refers"),
    ({"tools__test.sh": "cat ../shared/x"}, check_outside_references, "tools/test.sh:1: refers"),
]


def small_house(root: Path) -> Path:
    """A tree in order, with one of each thing that the checks look at."""
    project = ", ".join(repr(distribution) for distribution, _ in architecture.DOORS.values())
    return plant(
        root,
        **{
            "pyproject.toml": f"[project]\ndependencies = [{project}]\n",
            "spearpool__init.py": "if TYPE_CHECKING:\n    from spearpool.client import Pool\n__all__ = []\n",
            "spearpool__config": "from .errors import x\n__all__ = []\n",
            "spearpool__errors": "import os\n__all__ = []\n",
            "spearpool__protocol__init.py": '"""Nothing."""\n',
            "spearpool__protocol__codec": "import msgspec\nfrom spearpool import __version__\n__all__ = []\n",
            "spearpool__worker__init.py": "",
            "spearpool__worker__main": "import uvloop\nfrom spearpool.protocol import codec\n__all__: list[str] = []\n",
            "spearpool__client__init.py": '"""Names."""\nfrom .pool import Pool\n__all__ = ["Pool"]\n',
            "spearpool__client__pool": "from spearpool import config\n__all__ = []\n",
            **dict.fromkeys(("tests__init.py", "tests__worker__init.py", "tests__protocol__init.py"), ""),
            **dict.fromkeys(("tests__client__init.py", "tests__integration__init.py", "tests__test_config"), ""),
            **dict.fromkeys(("tests__test_errors", "tests__protocol__test_codec", "tests__worker__test_main"), ""),
            **dict.fromkeys(
                ("tests__client__test_pool", "tests__integration__test_all", "tests__test_architecture"), ""
            ),
            "tests__conftest": "open('../shared/vectors')",
        },
    )


def test_the_small_house_is_in_order(tmp_path: Path) -> None:
    house = small_house(tmp_path)
    assert {check.__name__: check(house) for check in CHECKS} == {check.__name__: [] for check in CHECKS}


@pytest.mark.parametrize(("files", "check", "words"), BROKEN)
def test_a_broken_house_is_noticed(files: dict[str, str], check: Check, words: str, tmp_path: Path) -> None:
    found = check(plant(small_house(tmp_path), **files))
    assert any(words in line for line in found), found


def test_a_package_loaded_late_is_seen_by_the_fresh_interpreter(tmp_path: Path) -> None:
    plant(tmp_path, heavy="import asyncio", innocent="import heavy", broken="import nowhere")
    assert "asyncio" in loaded_packages("innocent", tmp_path)
    with pytest.raises(AssertionError, match="No module named 'nowhere'"):
        loaded_packages("broken", tmp_path)
