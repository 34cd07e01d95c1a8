"""The rules of the house as tables, and the checks that read a source tree against them.

Each check takes the root of a tree (a checkout, or a small synthetic one) and returns what it found wrong, a line each.
`test_architecture.py` runs them on this checkout, and on trees that are broken on purpose.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "CHECKS",
    "LIGHT",
    "check_circles",
    "check_declared_packages",
    "check_doors",
    "check_exports",
    "check_floors",
    "check_lengths",
    "check_names",
    "check_outside_references",
    "check_test_modules",
    "loaded_packages",
]

PACKAGE = "spearpool"

FLOORS = {
    **dict.fromkeys(("config", "config_checks", "config_mistakes", "config_tasks", "errors", "backoff"), 0),
    **dict.fromkeys(("packing", "channel", "log", "processes", "runtime_dir"), 0),
    "protocol": 1,
    **dict.fromkeys(("agent", "metrics", "journal"), 2),
    **dict.fromkeys(("instances", "worker", "client"), 3),
    "supervisor": 4,
    "cli": 5,
    "__init__": 6,  # the facade: names of the client, loaded on first use
    "__main__": 6,
}
"""A module may import its own folder (floor 0 is one folder) and any floor below. Siblings do not know each other."""

DOORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "click": ("click", ("cli",)),
    "msgspec": ("msgspec", ("packing", "protocol")),
    "multiprocess": ("multiprocess", ("supervisor.warden",)),
    "numpy": ("numpy", ("metrics.rollup",)),
    "psutil": ("psutil", ("instances.limits",)),
    "rich": ("rich", ("cli",)),
    "setproctitle": ("setproctitle", ("supervisor.warden",)),
    "structlog": ("structlog", ("log",)),
    "uvloop": ("uvloop", ("worker.main",)),
    "zmq": ("pyzmq", ("metrics.bus",)),
}
"""Import name → distribution, and the modules or folders that may import it."""

LIGHT = {
    "spearpool": {"msgspec", "numpy", "zmq", "psutil", "click", "asyncio", "structlog", "rich", "uvloop"},
    "spearpool.agent": {"numpy", "zmq", "psutil", "click", "asyncio", "structlog", "rich", "uvloop", "multiprocess"},
    "spearpool.instances.zygote": {"numpy", "zmq", "psutil", "click", "asyncio", "structlog", "rich", "uvloop"},
    "spearpool.worker.main": {"numpy", "zmq", "psutil", "click", "rich", "multiprocess"},
    "spearpool.supervisor.warden": {"numpy", "zmq", "psutil", "click", "rich"},
    "spearpool.client": {"numpy", "zmq", "psutil", "click", "rich", "uvloop", "multiprocess"},
}
"""Module → what a fresh interpreter that imports it must not have loaded."""

MAX_LINES = 400

LONG_MODULES: dict[str, str] = {}
"""Path → why it is longer than that and still one subject."""

ATTIC_NAMES = re.compile(r"(utils?|helpers?|common|misc|base|impl)(_.*)?")

TESTS_OF_NO_MODULE = ("tests/stateful/", "tests/integration/", "tests/chaos/", "tests/test_architecture.py")

OUTSIDE = re.compile(r"\.\./shared\b")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, by its full dotted name, and the line that says so."""

    target: str
    line: int


@dataclass(frozen=True, slots=True)
class Module:
    """A source module. `name` is relative to the package: `worker.main`, `worker` (its `__init__`), `__init__`."""

    name: str
    path: Path
    tree: ast.Module
    lines: int

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def part(self) -> str:
        """The folder or top-level module that it belongs to: a key of `FLOORS`."""
        return self.name.partition(".")[0]


def read_modules(root: Path) -> dict[str, Module]:
    """All modules of the package, by name."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, path.relative_to(root), ast.parse(text, str(path)), text.count("\n"))
    return modules


def imports_of(module: Module, modules: dict[str, Module]) -> Iterator[Import]:
    """Every import statement, wherever it stands: late and type-only imports count like any other."""
    folder = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
    home = [PACKAGE, *(folder if folder != ["__init__"] else [])]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                below = f"{origin}.{alias.name}"
                if (origin, alias.name) == (PACKAGE, "__version__"):
                    continue  # a constant; its module imports nothing when it is loaded
                yield Import(below if inside(below) in modules else origin, node.lineno)


def inside(target: str) -> str:
    """The name of a module relative to the package; empty when it is not in it."""
    if target == PACKAGE:
        return "__init__"
    return target.removeprefix(f"{PACKAGE}.") if target.startswith(f"{PACKAGE}.") else ""


def check_floors(root: Path) -> list[str]:
    """Arrows run down only."""
    modules = read_modules(root)
    wrong = [f"{m.path}: {m.part!r} stands on no floor" for m in modules.values() if m.part not in FLOORS]
    for module in modules.values():
        for found in imports_of(module, modules):
            name = inside(found.target)
            below = name.partition(".")[0]
            if not name or module.part not in FLOORS or below == module.part:
                continue
            here, there = FLOORS[module.part], FLOORS.get(below, 99)
            if there > here or (there == here and here > 0):
                wrong.append(f"{module.path}:{found.line}: floor {here} imports {found.target} of floor {there}")
    return wrong


def check_circles(root: Path) -> list[str]:
    """No import circles."""
    modules = read_modules(root)
    graph = {
        name: {inside(found.target) for found in imports_of(module, modules)} - {"", name}
        for name, module in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return ["circle: " + " → ".join(error.args[1])]
    return []


def check_doors(root: Path) -> list[str]:
    """Each third-party package is imported in its one place."""
    modules = read_modules(root)
    wrong = []
    for module in modules.values():
        for found in imports_of(module, modules):
            package = found.target.partition(".")[0]
            if package == PACKAGE or package in sys.stdlib_module_names:
                continue
            doors = DOORS.get(package, ("", ()))[1]
            if not any(module.name == door or module.name.startswith(f"{door}.") for door in doors):
                wrong.append(
                    f"{module.path}:{found.line}: imports {package}; its door is {' or '.join(doors) or 'unknown'}"
                )
    return wrong


def check_declared_packages(root: Path) -> list[str]:
    """`pyproject.toml` asks for the packages that have a door, and for no others."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in project["dependencies"]}
    used = {distribution for distribution, _ in DOORS.values()}
    return [f"pyproject.toml: {name} has no door" for name in sorted(declared - used)] + [
        f"pyproject.toml: {name} is not declared" for name in sorted(used - declared)
    ]


def check_test_modules(root: Path) -> list[str]:
    """One test module per module, in the same place, and none without a module."""
    wrong = []
    expected = set()
    for module in read_modules(root).values():
        if module.path.name in {"__init__.py", "__main__.py"}:
            continue
        relative = module.path.relative_to(PACKAGE)
        twin = Path("tests") / relative.with_name(f"test_{relative.name}")
        expected.add(twin)
        if not (root / twin).is_file():
            wrong.append(f"{module.path}: no {twin}")
    for path in sorted((root / "tests").rglob("test_*.py")):
        twin = path.relative_to(root)
        if twin not in expected and not twin.as_posix().startswith(TESTS_OF_NO_MODULE):
            wrong.append(f"{twin}: there is no module that it tests")
        if not (path.parent / "__init__.py").is_file():
            wrong.append(f"{twin.parent}: no __init__.py")
    return wrong


def check_lengths(root: Path) -> list[str]:
    """A module of two subjects is two modules; a long one of one subject says why."""
    wrong = []
    for folder in (PACKAGE, "tools", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            name, lines = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8").count("\n")
            if lines > MAX_LINES and name not in LONG_MODULES:
                wrong.append(f"{name}: {lines} lines, {MAX_LINES} at most without a listed reason")
    return wrong + [
        f"{name}: listed as long, but it is not there" for name in LONG_MODULES if not (root / name).exists()
    ]


def check_exports(root: Path) -> list[str]:
    """Each module says what it offers in `__all__`; an `__init__` of a docstring alone offers nothing."""

    def says(node: ast.stmt) -> bool:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)

    def is_silent(module: Module) -> bool:
        return module.is_package and all(isinstance(node, ast.Expr) for node in module.tree.body)

    return [
        f"{module.path}: no __all__"
        for module in read_modules(root).values()
        if not is_silent(module) and not any(map(says, module.tree.body))
    ]


def check_names(root: Path) -> list[str]:
    """No attic."""
    return [
        f"{module.path}: a name that says nothing"
        for module in read_modules(root).values()
        if any(ATTIC_NAMES.fullmatch(part) for part in module.name.split("."))
    ]


def check_outside_references(root: Path) -> list[str]:
    """Nothing but tests may look outside the checkout."""
    folders = (PACKAGE, "tools", "benchmarks", ".ci")
    paths = [
        path for folder in folders for path in (root / folder).rglob("*") if path.suffix in {".py", "", ".sh", ".toml"}
    ]
    wrong = []
    for path in sorted([*paths, *root.glob("*.md"), *root.glob("*.toml")]):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], 1):
            if OUTSIDE.search(line):
                wrong.append(f"{path.relative_to(root)}:{number}: refers to what is outside the project")
    return wrong


def loaded_packages(module: str, root: Path) -> set[str]:
    """Names of all top-level packages that a fresh interpreter has loaded after importing `module`."""
    program = f"import sys; sys.path.insert(0, {str(root)!r}); import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise AssertionError(f"import {module} failed:\n{done.stderr}")
    return {name.partition(".")[0] for name in done.stdout.split()}


CHECKS = (
    check_floors,
    check_circles,
    check_doors,
    check_declared_packages,
    check_test_modules,
    check_lengths,
    check_exports,
    check_names,
    check_outside_references,
)
