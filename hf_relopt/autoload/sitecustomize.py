"""Makes `--optim fromage` work in every Python process under `hf-relopt run`.

Python imports a module of this name at start-up, and `hf-relopt run` puts this file first. It is
cheap: standard library only; hf_relopt (with torch) is imported only if and when
transformers.training_args is. The environment's own sitecustomize, which this one hides, is run.

An uncaught error of hf_relopt is printed as its message alone, which says what to do: a traceback
is of no use to a user who never called hf_relopt. A script that imports hf_relopt itself keeps
Python's behaviour.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, TracebackType

_HERE = os.path.dirname(os.path.abspath(__file__))
TRACEBACK = "HF_RELOPT_TRACEBACK"


def _real(path: str) -> str:
    return os.path.normcase(os.path.realpath(path))


def _load(spec: ModuleSpec) -> ModuleType:
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def _register(module: ModuleType) -> None:
    """Add the optimizers to transformers, which has just been loaded."""
    try:
        import hf_relopt

        hf_relopt.register()
    except Exception as error:
        # The script may well do without us. If not, `--optim fromage` fails in its own words.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if isinstance(error, ModuleNotFoundError) and error.name == "hf_relopt":
            reason = (
                f"{sys.executable} cannot import hf_relopt. "
                "Install it there, or start the command with the Python that has it"
            )
        sys.stderr.write(f"hf-relopt: --optim fromage and madam are not available: {reason}.\n")


def _hook() -> None:
    path = os.path.join(os.path.dirname(_HERE), "import_hook.py")
    spec = importlib.util.spec_from_file_location("_hf_relopt_import_hook", path)
    assert spec is not None
    _load(spec).call_when_imported("transformers.training_args", _register)


def _is_ours(kind: type[BaseException]) -> bool:
    """Say whether it is a RelOptError; this file imports nothing of ours to ask."""
    names = [(base.__module__, base.__name__) for base in kind.__mro__]
    return ("hf_relopt.errors", "RelOptError") in names


def _place(traceback: TracebackType | None) -> str:
    """The script's line where it happened: the last one in the traceback."""
    script = _real(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    line = 0
    while traceback is not None:
        if _real(traceback.tb_frame.f_code.co_filename) == script:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f"{os.path.basename(script)}, line {line}; " if line else ""


def _end_shortly() -> None:
    before = sys.excepthook

    def tell(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if not _is_ours(kind) or os.environ.get(TRACEBACK, "0") != "0":
            before(kind, error, traceback)
            return
        sys.stderr.write(
            f"hf-relopt: {kind.__name__}: {error}\n"
            f"({_place(traceback)}{TRACEBACK}=1 shows the traceback)\n"
        )

    sys.excepthook = tell


def _chain() -> None:
    """Run the sitecustomize that comes after this one on sys.path, if there is one."""
    # Only what comes after: two installations of hf_relopt would else call each other for ever.
    places = [_real(path) for path in sys.path]
    after = sys.path[places.index(_real(_HERE)) + 1 :] if _real(_HERE) in places else sys.path
    spec = PathFinder.find_spec("sitecustomize", after)
    if spec is None or spec.loader is None or _real(spec.origin or "") == _real(__file__):
        return
    # `import sitecustomize` shall give the environment's own, as it would without us.
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


_hook()
_end_shortly()
_chain()
