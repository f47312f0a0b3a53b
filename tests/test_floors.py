"""The house's floors: who may import whom, who may print, how long a file may be.

A module imports only from lower floors or from its own folder. These are the floors; a module that
is not in the table fails until someone decides where it belongs.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

import hf_relopt

PACKAGE = Path(hf_relopt.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

FLOORS = {
    "errors": 0,
    "import_hook": 0,
    "version": 0,
    "whole_file": 0,
    "autoload": 0,
    "rules": 1,
    "lns": 1,
    "sharding": 2,
    "plans": 2,
    "options": 2,
    "backends": 2,
    "step": 3,
    "optim": 3,
    "shipped": 3,
    "distance": 3,
    "telemetry": 3,
    "report": 3,
    "nn": 3,
    "hf": 4,
    "cli": 5,
    "__main__": 6,
}
# Who may import from its own floor: (importer, imported).
ASIDE = {
    ("lns", "rules"),
    ("options", "plans"),
    ("options", "backends"),
    ("optim", "step"),
    ("telemetry", "step"),
    ("telemetry", "optim"),
    ("telemetry", "distance"),
}
# Third parties that only some may know: module -> who. Everything below the module counts as well.
ONLY_FOR = {
    "torch.distributed": {"sharding", "nn", "optim", "hf", "cli"},
    "torch.distributed.tensor": {"sharding", "nn"},
    "transformers": {"hf"},
    "accelerate": {"hf"},
    "triton": {"backends"},
    "typer": {"cli"},
    "rich": {"cli"},
}
# Folders whose modules have their tests under their own names.
MIRRORED = (
    "rules",
    "lns",
    "sharding",
    "nn",
    "options",
    "plans",
    "backends",
    "step",
    "optim",
    "distance",
    "telemetry",
    "report",
)
# Modules that only say what is tested elsewhere: records, and classes whose options are a table.
TESTED_BY = {
    "backends/packed": "backends/triton/test_packed.py",
    "backends/triton/walk": "backends/triton/test_update.py",
    "rules/facts": "step/test_decide.py",
    "lns/definition": "lns/test_codec.py",
    "lns/in_codes": "lns/test_tensor.py",
    "lns/operators": "lns/test_tensor.py",
    "lns/rows": "lns/test_tensor.py",
    "step/formulas": "step/test_pipeline.py",
    "step/one_look": "backends/triton/test_one_look.py",
    "optim/fromage": "options/test_tables.py",
    "optim/madam": "options/test_tables.py",
}
# The package's own __init__ names everything for type checkers and loads it when asked.
ROOT = "__init__"
BANNED_NAMES = {"utils", "common", "helpers"}


class Import(NamedTuple):
    """One imported module, and whether it is loaded together with the importer."""

    module: str
    line: int
    at_once: bool


def home(path: Path) -> str:
    """The folder or top-level module that a file belongs to: its row of the table."""
    return path.parts[0].removesuffix(".py")


def imports(source: str) -> list[Import]:
    """All imports in a file; also inside functions, for types only, or by import_module("name")."""
    found: list[Import] = []

    def visit(node: ast.AST, at_once: bool) -> None:
        match node:
            case ast.Import(names=names):
                found.extend(Import(alias.name, node.lineno, at_once) for alias in names)
            case ast.ImportFrom(level=0, module=module, names=names) if module == "hf_relopt":
                found.extend(
                    Import(f"hf_relopt.{alias.name}", node.lineno, at_once) for alias in names
                )
            case ast.ImportFrom(level=level, module=module, names=names):
                prefix = "." * level + (module or "")
                found.append(Import(prefix, node.lineno, at_once))
                # `from torch.distributed import tensor` imports torch.distributed.tensor.
                found.extend(Import(f"{prefix}.{a.name}", node.lineno, False) for a in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]) if ast.unparse(
                func
            ).endswith("import_module"):
                found.append(Import(name, node.lineno, False))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                at_once = False
            case ast.If(test=test) if ast.unparse(test).endswith("TYPE_CHECKING"):
                at_once = False
        for child in ast.iter_child_nodes(node):
            visit(child, at_once)

    visit(ast.parse(source), True)
    return found


def faults(path: Path, source: str) -> list[str]:
    """What a file does that its floor forbids; empty if all is well."""
    mine = home(path)
    if path == Path("__init__.py"):
        return []
    if mine not in FLOORS:
        return [f"{path}: not in the table of floors; decide where '{mine}' belongs"]
    found: list[str] = []
    for name, line, _ in imports(source):
        where = f"{path}:{line}"
        if name.startswith("."):
            found.append(f"{where}: relative import of {name}")
        if name == "hf_relopt" and mine != "autoload":
            found.append(f"{where}: imports the package root")
        if name.startswith("hf_relopt."):
            found.extend(f"{where}: {fault}" for fault in _own_import_faults(mine, name))
        found.extend(
            f"{where}: only {sorted(allowed)} may import {module}"
            for module, allowed in ONLY_FOR.items()
            if (name == module or name.startswith(module + ".")) and mine not in allowed
        )
    if mine not in {"cli", "autoload"}:
        found.extend(
            f"{path}:{node.lineno}: prints; only cli/ does"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        )
    if mine == "autoload":
        found.extend(
            f"{path}:{line}: the start-up file loads {name}"
            for name, line, at_once in imports(source)
            if at_once and name.partition(".")[0] in {"hf_relopt", "torch", "transformers"}
        )
    if path.stem in BANNED_NAMES:
        found.append(f"{path}: name the file after its idea")
    if source.count("\n") >= 400:
        found.append(f"{path}: {source.count(chr(10))} lines; split it (under 400)")
    return found


def _own_import_faults(mine: str, name: str) -> list[str]:
    theirs = name.split(".")[1]
    if theirs == mine or (mine, theirs) in ASIDE:
        return []
    if theirs not in FLOORS:
        return [f"imports {theirs} from the package root"]
    if FLOORS[theirs] >= FLOORS[mine]:
        return [f"{mine} (floor {FLOORS[mine]}) imports {theirs} (floor {FLOORS[theirs]})"]
    return []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle in who-imports-whom, as a list of names; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := walk(other, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def _module(path: Path) -> str:
    parts = ["hf_relopt", *path.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_keeps_to_its_floor(path):
    assert faults(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


def test_recipes_are_short_and_each_module_has_its_test():
    recipes = PACKAGE.parent / "recipes"
    for path in sorted(recipes.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") < 400 and path.stem not in BANNED_NAMES, path
        test = PACKAGE.parent / "tests" / "recipes" / f"test_{path.stem}.py"
        assert test.is_file() or "RECIPE = Recipe(" in source, f"{path} has no {test.name}"


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if home(path) in {"hf", "cli"} and path.stem != "__init__"],
    ids=str,
)
def test_module_has_its_tests_under_its_own_name(path):
    assert (Path(__file__).parent / path.parent / f"test_{path.name}").is_file()


def test_each_module_has_its_test():
    tests = PACKAGE.parent / "tests"
    for path in FILES:
        if home(path) in MIRRORED and path.stem != "__init__":
            name = path.with_suffix("").as_posix()
            test = tests / TESTED_BY.get(name, f"{path.parent.as_posix()}/test_{path.stem}.py")
            assert test.is_file(), f"{path} has no {test.relative_to(tests)}"
    assert all((PACKAGE / f"{name}.py").is_file() for name in TESTED_BY)


def test_no_circles():
    modules = {_module(path): path for path in FILES}
    graph = {
        name: {
            found.module
            for found in imports((PACKAGE / path).read_text(encoding="utf-8"))
            if found.at_once and found.module in modules and found.module != name
        }
        for name, path in modules.items()
    }
    assert circle(graph) == []


def test_public_names_are_sorted_few_and_there():
    names = hf_relopt.__all__
    assert names == sorted(names) and len(names) == len(set(names)) <= 24
    assert [name for name in names if not hasattr(hf_relopt, name)] == []


# The checks must be able to fail: each line breaks one rule.
@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("surprise.py", "", "not in the table"),
        (
            "rules/new.py",
            "from hf_relopt.sharding.layout import local",
            "rules (floor 1) imports",
        ),
        ("rules/new.py", "import hf_relopt.optim.base", "imports optim (floor 3)"),
        ("plans/new.py", "from hf_relopt.sharding.layout import local", "imports sharding"),
        ("step/new.py", "from hf_relopt.optim.base import B", "imports optim"),
        (
            "sharding/new.py",
            "def f():\n    from hf_relopt.backends import loop",
            "imports backends",
        ),
        ("optim/new.py", "from hf_relopt import Fromage", "from the package root"),
        ("optim/new.py", "import hf_relopt", "imports the package root"),
        ("optim/new.py", "from .base import Base", "relative import"),
        (
            "optim/new.py",
            "from torch.distributed.tensor import DTensor",
            "torch.distributed.tensor",
        ),
        ("optim/new.py", "from torch.distributed import tensor", "torch.distributed.tensor"),
        ("rules/new.py", "import torch.distributed as dist", "may import torch.distributed"),
        ("optim/new.py", "from transformers import Trainer", "may import transformers"),
        ("cli/new.py", "import accelerate", "may import accelerate"),
        (
            "optim/new.py",
            "import importlib\nimportlib.import_module('hf_relopt.hf.x')",
            "imports hf",
        ),
        ("optim/new.py", "if TYPE_CHECKING:\n    from hf_relopt.hf import guards", "imports hf"),
        ("hf/new.py", "print('hello')", "prints"),
        ("autoload/new.py", "import hf_relopt", "the start-up file loads"),
        ("hf/utils.py", "", "name the file after its idea"),
        ("hf/new.py", "\n" * 400, "400 lines"),
    ],
)
def test_the_check_sees(path, source, fault):
    assert any(fault in line for line in faults(Path(path), source)), faults(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("optim/new.py", "from hf_relopt.optim.base import B\nfrom hf_relopt.errors import E"),
        ("backends/new.py", "from hf_relopt.rules.rule import RULES"),
        ("optim/new.py", "from hf_relopt.step.slot import Slot"),
        ("hf/new.py", "from transformers import Trainer\nfrom hf_relopt.optim.base import B"),
        ("cli/new.py", "print('hello')"),
        ("autoload/new.py", "def f():\n    import hf_relopt"),
        ("sharding/layout.py", "from torch.distributed.tensor import DTensor"),
    ],
)
def test_the_check_allows(path, source):
    assert faults(Path(path), source) == []


def test_the_check_sees_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
