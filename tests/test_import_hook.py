"""The hook calls once, at the right moment, and leaves no trace in the import system."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json  # noqa: F401  (a module that is loaded)
import subprocess
import sys
import textwrap
import threading
import zipfile
from importlib import resources
from pathlib import Path
from types import ModuleType

import pytest

from hf_relopt import import_hook

FILE = import_hook.__file__


def _copy() -> ModuleType:
    """The file loaded by its path, as sitecustomize does. The package's own copy is at work."""
    spec = importlib.util.spec_from_file_location("copy_of_import_hook", FILE)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.fixture
def hook(monkeypatch):
    """A fresh copy, importable as hook_under_test; gone from the import system afterwards."""
    copy = _copy()
    monkeypatch.setitem(sys.modules, "hook_under_test", copy)
    yield copy
    if copy._FINDER in sys.meta_path:
        sys.meta_path.remove(copy._FINDER)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A factory for importable modules; forgets them afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, source: str = "value = 1\n") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return path

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__path__", "")) + str(
            getattr(sys.modules[name], "__file__", "")
        ):
            del sys.modules[name]


def test_loaded_module_is_served_at_once(hook):
    seen = []
    hook.call_when_imported("json", seen.append)
    assert seen == [sys.modules["json"]]
    assert hook._FINDER not in sys.meta_path


def test_later_import_is_served_after_the_module_ran(hook, package):
    package("late_one.py")
    seen = []
    hook.call_when_imported("late_one", lambda module: seen.append(module.value))
    assert seen == []
    late_one = importlib.import_module("late_one")
    assert seen == [1]
    assert hook._FINDER not in sys.meta_path
    assert late_one.__loader__ is late_one.__spec__.loader
    assert type(late_one.__loader__).__name__ == "SourceFileLoader"
    assert inspect.getsource(late_one) == "value = 1\n"
    assert importlib.reload(late_one) is late_one
    assert seen == [1]


def test_submodule_of_a_package_is_served_and_sees_its_own_loader(hook, package):
    package("parent/__init__.py", "")
    package("parent/data.txt", "text")
    package("parent/child.py", "mine = type(__loader__).__name__, type(__spec__.loader).__name__\n")
    seen = []
    hook.call_when_imported("parent.child", seen.append)
    importlib.import_module("parent")
    assert seen == []
    child = importlib.import_module("parent.child")
    assert seen == [child]
    assert child.mine == ("SourceFileLoader", "SourceFileLoader")
    assert resources.files("parent").joinpath("data.txt").read_text() == "text"


def test_the_same_callback_waits_once(hook, package):
    package("asked_twice.py")
    seen = []
    hook.call_when_imported("asked_twice", seen.append)
    hook.call_when_imported("asked_twice", seen.append)
    importlib.import_module("asked_twice")
    assert len(seen) == 1


def _by_name(module):
    raise AssertionError("an older function of the same name was called")


def test_a_function_replaces_the_one_of_the_same_name(hook, package):
    package("after_reload.py")
    seen = []
    hook.call_when_imported("after_reload", _by_name)

    def newer(module):
        seen.append(module)

    newer.__qualname__ = _by_name.__qualname__
    hook.call_when_imported("after_reload", newer)
    importlib.import_module("after_reload")
    assert len(seen) == 1


def test_two_inner_functions_are_two_callbacks(hook, package):
    package("two_lambdas.py")
    seen = []
    for number in (1, 2):
        hook.call_when_imported("two_lambdas", lambda _, number=number: seen.append(number))
    importlib.import_module("two_lambdas")
    assert seen == [1, 2]


def test_an_error_in_the_callback_is_the_import_s_error_each_time(hook, package):
    package("refused.py")

    def refuse(module):
        raise RuntimeError("moved in this release")

    hook.call_when_imported("refused", refuse)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="moved in this release"):
            importlib.import_module("refused")
        assert "refused" not in sys.modules


def test_a_module_that_fails_to_load_calls_nothing(hook, package):
    path = package("broken.py", "raise ValueError('broken')")
    seen = []
    hook.call_when_imported("broken", seen.append)
    with pytest.raises(ValueError, match="broken"):
        importlib.import_module("broken")
    assert seen == []
    path.write_text("value = 22222222\n")
    importlib.invalidate_caches()
    assert importlib.import_module("broken").value == 22222222
    assert len(seen) == 1


def test_a_module_that_does_not_exist_is_still_not_found(hook, package):
    hook.call_when_imported("no_such_module_here", print)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_here"):
        importlib.import_module("no_such_module_here")
    assert importlib.util.find_spec("no_such_module_here") is None


def test_callback_may_register_another_which_is_called_at_once(hook, package):
    package("nested.py")
    seen = []

    def outer(module):
        hook.call_when_imported("nested", lambda inner: seen.append(inner.value))
        _copy().call_when_imported("nested", lambda inner: seen.append(inner.value + 1))

    hook.call_when_imported("nested", outer)
    importlib.import_module("nested")
    assert seen == [1, 2]
    assert hook._FINDER not in sys.meta_path


def test_two_copies_of_the_hook_do_not_disturb_each_other(hook, package):
    package("twice.py")
    seen = []
    _copy().call_when_imported("twice", lambda module: seen.append("copy"))
    hook.call_when_imported("twice", lambda module: seen.append("own"))
    module = importlib.import_module("twice")
    assert sorted(seen) == ["copy", "own"]
    assert type(module.__spec__.loader).__name__ == "SourceFileLoader"
    assert hook._FINDER not in sys.meta_path


def test_half_loaded_module_is_served_when_it_is_finished(hook, package):
    package(
        "half.py",
        """
        from hook_under_test import call_when_imported
        seen = []
        call_when_imported("half", lambda module: seen.append(module.value))
        assert seen == []
        value = 7
        """,
    )
    package("anything_else.py")
    half = importlib.import_module("half")
    importlib.import_module("anything_else")
    assert half.seen == [7]
    assert hook._FINDER not in sys.meta_path


def test_module_out_of_a_zip_is_served(hook, tmp_path, package, monkeypatch):
    archive = tmp_path / "modules.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped.py", "value = 3\n")
    monkeypatch.syspath_prepend(archive)
    seen = []
    hook.call_when_imported("zipped", lambda module: seen.append(module.value))
    zipped = importlib.import_module("zipped")
    assert seen == [3]
    assert type(zipped.__loader__).__name__ == "zipimporter"
    assert zipped.__loader__.archive == str(archive)


def test_namespace_package_is_served_by_the_next_import(hook, package):
    package("spacious/inner.py")
    seen = []
    hook.call_when_imported("spacious", seen.append)
    importlib.import_module("spacious.inner")
    assert [module.__name__ for module in seen] == ["spacious"]
    assert hook._FINDER not in sys.meta_path


def test_module_that_replaces_itself_is_served_as_what_it_became(hook, package):
    package(
        "lazy.py",
        """
        import sys, types
        class Lazy(types.ModuleType):
            value = 9
        new = Lazy(__name__)
        new.__spec__ = __spec__
        sys.modules[__name__] = new
        """,
    )
    seen = []
    hook.call_when_imported("lazy", lambda module: seen.append(module.value))
    assert importlib.import_module("lazy").value == 9
    assert seen == [9]


def test_threads_that_import_at_once_get_one_call(hook, package):
    package("shared.py", "import time\ntime.sleep(0.2)\nvalue = 1\n")
    seen = []
    hook.call_when_imported("shared", lambda module: seen.append(module.value))
    start = threading.Barrier(4)
    found = []

    def load():
        start.wait()
        found.append(importlib.import_module("shared"))

    def ask():
        start.wait()
        hook.call_when_imported("shared", lambda module: found.append(module))

    threads = [threading.Thread(target=target) for target in (load, load, ask, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1]
    assert found == [sys.modules["shared"]] * 4
    assert hook._FINDER not in sys.meta_path


def test_nothing_is_called_while_a_module_of_ours_is_looked_for(hook):
    """A callback may import the same one: whoever looks for it would load it a second time."""
    found = []
    hook.call_when_imported("never_imported", found.append)  # so that the finder is at work
    hook._waiting["json"] = {"key": found.append}
    assert hook._FINDER.find_spec("hf_relopt.hf.registration") is None and not found
    assert hook._FINDER.find_spec("something_else") is None and found == [sys.modules["json"]]


def test_the_file_needs_only_the_standard_library():
    code = f"""
        import sys, importlib.util
        spec = importlib.util.spec_from_file_location("by_path", {FILE!r})
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        foreign = {{name.partition('.')[0] for name in sys.modules}} - sys.stdlib_module_names
        assert foreign <= {{"__main__", "by_path"}}, foreign
    """
    # -S: what site loads (editable installs) is not the file's doing.
    subprocess.run([sys.executable, "-S", "-c", textwrap.dedent(code)], check=True)
