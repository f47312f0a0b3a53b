"""``--optim fromage`` and the other names in Transformers, which has no registry for them.

HfArgumentParser takes its choices from the enum OptimizerNames, TrainingArguments converts with it,
and Trainer looks the member up in a table of handlers. A real member and a handler make all three
work. Everything that leans on those insides is in this file.
"""

from __future__ import annotations

import functools
import sys
from enum import Enum
from types import ModuleType
from typing import Any

import torch
from torch import nn

from hf_relopt.errors import UnsupportedSetup
from hf_relopt.groups import peak_lr
from hf_relopt.hf import arguments, guards, optim_args
from hf_relopt.hf.log import logger
from hf_relopt.optim.base import RelativeOptimizer
from hf_relopt.optim.create import OPTIMIZERS, from_plan
from hf_relopt.optim.create import plan as make_plan
from hf_relopt.presets import follows_spectral

SUPPORTED = "5.4 to 5.23"


def register() -> None:
    """Make our optimizers known to Transformers; idempotent.

    Raises:
        UnsupportedSetup: this Transformers keeps its optimizers elsewhere.
    """
    from transformers import training_args

    # First, so that asking for our names gets our error even if the rest fails.
    _check_arguments_early(training_args)
    _add_members(training_args)
    # The handlers' module imports torch and more: it is filled when somebody needs it.
    trainer_optimizer = sys.modules.get("transformers.trainer_optimizer")
    if trainer_optimizer is not None:
        _add_handlers(trainer_optimizer)


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
    try:
        from transformers import trainer_optimizer
    except ImportError:
        raise _moved("module trainer_optimizer") from None
    _add_handlers(trainer_optimizer)


def restore_member(name: str) -> Enum:
    """Unpickle an optimizer's name in a process that has not imported hf_relopt yet."""
    register()
    from transformers.training_args import OptimizerNames

    return OptimizerNames(name)


def build_optimizer(model: nn.Module, args: Any) -> RelativeOptimizer:
    """The optimizer that ``args`` ask for, with its plan printed.

    Raises:
        ConfigError, UnsupportedSetup: see :func:`hf_relopt.hf.arguments.check`.
    """
    name = arguments.name_of(args)
    assert name is not None
    arguments.check(args)
    guards.check_launch(model)
    said = optim_args.parse(name, args.optim_args)
    lr = arguments.resolve_lr(args, name, model, said.lr)
    options = dict(said.options)
    if follows_spectral(name, options) and guards.every_process_has_all_weights(model):
        options.setdefault("share_work", True)
    chosen = make_plan(model, name, lr, overrides=said.overrides, **options)
    logger.info("%s", chosen)
    optimizer = from_plan(chosen)
    arguments.explain(args, name, optimizer.param_groups)
    followers = [i for i, group in enumerate(optimizer.param_groups) if group["lr"] == lr]
    # With every group overridden there is no common rate to report.
    if followers:
        adopt = functools.partial(_adopt_saved_lr, args, followers[0])
        optimizer.register_load_state_dict_post_hook(adopt)
    return optimizer


def _adopt_saved_lr(args: Any, place: int, optimizer: torch.optim.Optimizer) -> None:
    """After a resume the checkpoint's rate is in force: let ``args`` say so."""
    lr = peak_lr(optimizer.param_groups[place])
    if lr != args.learning_rate:
        logger.info("resumed: learning rate %g, from the checkpoint.", lr)
        args.learning_rate = lr


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


def _handle(context: Any) -> tuple[Any, dict[str, Any]]:
    """Trainer calls ``factory()(model, **kwargs)`` with what a handler returns."""

    def factory() -> Any:
        return functools.partial(build_optimizer, args=context.args)

    return factory, {}


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


def _checked(original: Any) -> Any:
    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        # set_optimizer takes the name; __post_init__ finds it in the field.
        wanted = kwargs.get("name", args[0] if args else getattr(self, "optim", None))
        if str(getattr(wanted, "value", wanted)) in OPTIMIZERS:
            require()
        result = original(self, *args, **kwargs)
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
