"""Call something at the moment a module is imported, without importing it.

Standard library only: `autoload/sitecustomize.py` loads this file by its path, before anything of
hf_relopt is importable. Two copies of it may be at work in one process; they do not disturb each
other.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Callback = Callable[[ModuleType], None]

# Set on a module's spec once its code has run. While our callbacks run, Python itself still calls
# the module unfinished; the mark lets a callback register more callbacks (from any copy of this
# file) and have them called at once.
_EXECUTED = "_hf_relopt_executed"

_lock = threading.RLock()
_waiting: dict[str, dict[object, Callback]] = {}
_searching = threading.local()


def call_when_imported(module_name: str, callback: Callback) -> None:
    """Call `callback(module)` now if the module is loaded, else right after it has been.

    Idempotent: while it waits, the same callback (or another of the same qualified name, as after
    a reload) is held once for a module. An error in the callback is the error of the import.

    Args:
        module_name: absolute dotted name, as in `sys.modules`.
        callback: takes the loaded module; it may import anything, also parts of hf_relopt.

    Raises:
        Exception: whatever the callback raises, if the module is loaded already.
    """
    module = sys.modules.get(module_name)
    if module is not None and not is_finished(module):
        # Another thread may be loading it: import_module waits for that one. Within one thread (a
        # circular import) it returns at once, and the finder below calls later.
        module = importlib.import_module(module_name)
    if module is not None and is_finished(module):
        callback(module)
        return
    with _lock:
        _waiting.setdefault(module_name, {})[_identity(callback)] = callback
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
    # Another thread may have finished the import since we looked.
    module = sys.modules.get(module_name)
    if module is not None and is_finished(module):
        _fire(module)


def is_finished(module: ModuleType) -> bool:
    """Has the module's code run to its end? In a circular import others see it half loaded."""
    spec = getattr(module, "__spec__", None)
    return getattr(spec, _EXECUTED, False) or not getattr(spec, "_initializing", False)


def _identity(callback: Callback) -> object:
    name = getattr(callback, "__qualname__", "<")
    # Two lambdas or inner functions may share a name and still be two callbacks.
    return callback if "<" in name else (getattr(callback, "__module__", None), name)


def _fire(module: ModuleType) -> None:
    """Call what waits for the module, each once. One that fails waits on, for the next try."""
    name = module.__name__
    while True:
        with _lock:
            callbacks = _waiting.get(name)
            if not callbacks:
                _waiting.pop(name, None)
                if not _waiting and _FINDER in sys.meta_path:
                    sys.meta_path.remove(_FINDER)
                return
            key, callback = next(iter(callbacks.items()))
            del callbacks[key]
        # Outside the lock: the callback may import, and waits for other threads' import locks.
        try:
            callback(module)
        except BaseException:
            with _lock:
                _waiting.setdefault(name, {})[key] = callback
            raise


class _Finder:
    """Finds awaited modules through the other finders and wraps their loaders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # Not while a module of ours is looked for: a callback may import the same one, and whoever
        # looks for it would then load it a second time.
        if name.partition(".")[0] != "hf_relopt":
            self._fire_missed()
        active: set[str] = _searching.__dict__.setdefault("names", set())
        if name not in _waiting or name in active:
            return None
        active.add(name)
        try:
            spec = self._find_elsewhere(name, path, target)
        finally:
            active.discard(name)
        # Without exec_module (a namespace package has no loader at all) there is nothing to wrap:
        # the next import finds the module finished and calls then.
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec

    def _find_elsewhere(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec = find(name, path, target)
            if spec is not None:
                return spec
        return None

    def _fire_missed(self) -> None:
        """Serve modules that were loaded past us: half loaded when awaited, or never wrapped."""
        for name in list(_waiting):
            module = sys.modules.get(name)
            if module is not None and is_finished(module):
                _fire(module)


class _Loader:
    """The real loader in all respects; after it has run the module, the callbacks are called."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        create = getattr(self._real, "create_module", None)
        return create(spec) if create is not None else None

    def exec_module(self, module: ModuleType) -> None:
        # The module must see its own loader: importlib.resources, inspect and pickle look there.
        module.__loader__ = self._real
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        self._real.exec_module(module)
        # The code may have put another object in its place (lazy modules do).
        module = sys.modules.get(module.__name__, module)
        setattr(module.__spec__, _EXECUTED, True)
        _fire(module)


_FINDER: Any = _Finder()
