"""``--optim fromage`` and the other names in Transformers, which has no registry for them.

HfArgumentParser takes its choices from the enum OptimizerNames, TrainingArguments converts with it,
and Trainer looks the member up in a table of handlers. A real member and a handler make all three
work. All code that relies on those internals is in this file.
"""

from __future__ import annotations

import functools
import re
import sys
from enum import Enum
from types import ModuleType
from typing import Any

from hf_relopt.errors import UnsupportedSetup
from hf_relopt.hf import arguments, trainers
from hf_relopt.hf.log import logger
from hf_relopt.import_hook import is_finished
from hf_relopt.plans.entries import OPTIMIZERS
from hf_relopt.version import __version__

# Major and minor version of the oldest and the newest transformers that the tests pass with. All
# else that names them is derived from here, or held to it by tests/test_versions.py.
OLDEST, NEWEST = (5, 4), (5, 24)
SUPPORTED = " to ".join(".".join(map(str, version)) for version in (OLDEST, NEWEST))


def register() -> None:
    """Register our optimizers with Transformers; calling it again does nothing.

    Raises:
        UnsupportedSetup: this Transformers keeps its optimizers elsewhere.
    """
    from transformers import training_args

    # First, so that asking for our names gets our error even if the rest fails.
    _check_arguments_early(training_args)
    _add_members(training_args)
    # These import torch and more: they are looked at when somebody needs them.
    for name, treat in (("trainer_optimizer", _add_handlers), ("trainer", _prepare_trainers)):
        module = sys.modules.get(f"transformers.{name}")
        if module is not None and is_finished(module):
            treat(module)


def register_on_import() -> None:
    """Register while Transformers is being imported: a failure must not break that import."""
    try:
        register()
    except UnsupportedSetup as error:
        _warn_once(str(error))


@functools.cache
def _warn_once(message: str) -> None:
    """Two modules of Transformers call us; one warning is enough."""
    logger.warning("--optim %s are not available: %s", ", ".join(OPTIMIZERS), message)


def require() -> None:
    """Register in full, because one of our names is asked for.

    Raises:
        UnsupportedSetup: this Transformers keeps its optimizers elsewhere.
    """
    register()
    _warn_if_untried()
    try:
        from transformers import trainer_optimizer
    except ImportError:
        raise _moved("module trainer_optimizer") from None
    _add_handlers(trainer_optimizer)


@functools.cache
def _warn_if_untried() -> None:
    """Log one line for an untested release; pip may install it, since most releases work.

    A cap in our requirements would hold back every new Transformers, whatever else it is used for,
    until we have tested it. If a release changed what we rely on, :func:`_moved` reports it.
    """
    import transformers

    found = re.match(r"(\d+)\.(\d+)", transformers.__version__)
    version = (int(found[1]), int(found[2])) if found else OLDEST
    if not OLDEST <= version <= NEWEST:
        logger.warning(
            "transformers %s was never tested with hf_relopt %s, which supports %s. If training "
            "fails, install one of these.",
            transformers.__version__,
            __version__,
            SUPPORTED,
        )


def restore_member(name: str) -> Enum:
    """Unpickle an optimizer's name in a process that has not imported hf_relopt yet."""
    register()
    from transformers.training_args import OptimizerNames

    return OptimizerNames(name)


def _add_members(training_args: ModuleType) -> None:
    names = getattr(training_args, "OptimizerNames", None)
    if not (isinstance(names, type) and issubclass(names, Enum) and issubclass(names, str)):
        raise _moved("training_args.OptimizerNames")
    for value in OPTIMIZERS:
        if value in names._value2member_map_:
            continue
        member: Any = str.__new__(names, value)
        member._name_, member._value_ = value.upper(), value
        member.__objclass__ = names
        member._sort_order_ = len(names._member_names_)
        # Pickle asks the object itself: a fresh process registers before it looks the name up.
        member.__reduce_ex__ = functools.partial(_reduce, value)
        type.__setattr__(names, member._name_, member)
        names._member_names_.append(member._name_)
        names._member_map_[member._name_] = member
        names._value2member_map_[value] = member


def _reduce(value: str, _protocol: int) -> tuple[Any, tuple[str]]:
    return restore_member, (value,)


def _add_handlers(trainer_optimizer: ModuleType) -> None:
    table = getattr(trainer_optimizer, "_OPTIMIZER_HANDLERS", None)
    if not isinstance(table, dict):
        raise _moved("trainer_optimizer._OPTIMIZER_HANDLERS")
    from transformers.training_args import OptimizerNames

    for value in OPTIMIZERS:
        table[OptimizerNames(value)] = _handle


def _handle(context: Any) -> tuple[type, dict[str, Any]]:
    """Trainer calls ``cls(param_groups, **kwargs)`` with what a handler returns."""
    from hf_relopt.hf.optimizer_class import class_and_options

    return class_and_options(context.args, context.model)


def _prepare_trainers(trainer: ModuleType) -> None:
    """Know of each Trainer when it is made, and of the checkpoint that it is about to load."""
    trainer_class = getattr(trainer, "Trainer", None)
    for method, before, after in (
        ("__init__", None, trainers.remember),
        ("_load_from_checkpoint", trainers.check_resuming, None),
    ):
        original = vars(trainer_class).get(method) if isinstance(trainer_class, type) else None
        if original is None:
            raise _moved(f"trainer.Trainer.{method}")
        if not getattr(original, "_hf_relopt", False):
            setattr(trainer_class, method, _with(original, before, after))


def _with(original: Any, before: Any, after: Any) -> Any:
    """A method with something of ours before or after it."""

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(self, *args, **kwargs)
        result = original(self, *args, **kwargs)
        if after is not None:
            after(self)
        return result

    wrapped._hf_relopt = True  # type: ignore[attr-defined]
    return wrapped


def _check_arguments_early(training_args: ModuleType) -> None:
    """Check our options when the arguments are built, before a model is loaded.

    Transformers' own parser of optim_args would end a malformed one in a bare unpacking error.
    """
    arguments_class = getattr(training_args, "TrainingArguments", None)
    for method in ("__post_init__", "set_optimizer"):
        original = getattr(arguments_class, method, None)
        if original is None:
            raise _moved(f"TrainingArguments.{method}")
        if not getattr(original, "_hf_relopt", False):
            setattr(arguments_class, method, _checked(original))
    if not getattr(arguments_class.__setattr__, "_hf_relopt", False):
        setattr(arguments_class, "__setattr__", _taking_back(arguments_class.__setattr__))  # noqa: B010


def _taking_back(original: Any) -> Any:
    """With another optimizer, the learning rate that we wrote into the arguments goes."""

    @functools.wraps(original)
    def wrapped(self: Any, name: str, value: Any) -> None:
        original(self, name, value)
        if name == "optim":
            arguments.mark_or_take_back(self)

    wrapped._hf_relopt = True  # type: ignore[attr-defined]
    return wrapped


def _checked(original: Any) -> Any:
    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        # set_optimizer takes the name; __post_init__ finds it in the field.
        wanted = kwargs.get("name", args[0] if args else getattr(self, "optim", None))
        if str(getattr(wanted, "value", wanted)) in OPTIMIZERS:
            require()
        result = original(self, *args, **kwargs)
        arguments.mark_or_take_back(self)
        arguments.check(self)
        return result

    wrapped._hf_relopt = True  # type: ignore[attr-defined]
    return wrapped


def _moved(what: str) -> UnsupportedSetup:
    import transformers

    return UnsupportedSetup(
        f"transformers {transformers.__version__} has no {what} of the kind that --optim fromage "
        f"and our other names need; hf_relopt supports transformers {SUPPORTED}. Install one of "
        "these, or pass Trainer(optimizer_cls_and_kwargs=(hf_relopt.Fromage, {'lr': 0.01}))."
    )
