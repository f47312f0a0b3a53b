"""Relative-trust optimizers (Fromage, Madam) for Hugging Face training.

Importing this package makes ``--optim fromage`` and ``--optim madam`` known to Transformers, now if
it is loaded, else when it gets loaded. It imports neither Transformers nor Triton itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_relopt import import_hook
from hf_relopt.version import __version__ as __version__

if TYPE_CHECKING:
    from hf_relopt.distance.compare import network_distance
    from hf_relopt.distance.result import Distance
    from hf_relopt.errors import ConfigError, FormatError, RelOptError, UnsupportedSetup
    from hf_relopt.hf.budget import DistanceBudget
    from hf_relopt.hf.callbacks import RelOptCallback
    from hf_relopt.hf.compression import compress, decompress
    from hf_relopt.hf.lns_config import LNSConfig
    from hf_relopt.hf.registration import register
    from hf_relopt.hf.trainer import RelOptMixin, RelOptTrainer
    from hf_relopt.optim.create import create_optimizer, plan
    from hf_relopt.optim.current_plan import plan_of
    from hf_relopt.optim.fromage import Fromage
    from hf_relopt.optim.integer_madam import IntegerMadam
    from hf_relopt.optim.madam import Madam
    from hf_relopt.plans.plan import Plan

__all__ = [
    "ConfigError",
    "Distance",
    "DistanceBudget",
    "FormatError",
    "Fromage",
    "IntegerMadam",
    "LNSConfig",
    "Madam",
    "Plan",
    "RelOptCallback",
    "RelOptError",
    "RelOptMixin",
    "RelOptTrainer",
    "UnsupportedSetup",
    "compress",
    "create_optimizer",
    "decompress",
    "network_distance",
    "plan",
    "plan_of",
    "register",
]

# Where each public name lives; loaded when first asked for, so that the command line and the
# interpreter start-up hook stay light.
_HOMES = {
    "ConfigError": "hf_relopt.errors",
    "Distance": "hf_relopt.distance.result",
    "DistanceBudget": "hf_relopt.hf.budget",
    "FormatError": "hf_relopt.errors",
    "Fromage": "hf_relopt.optim.fromage",
    "IntegerMadam": "hf_relopt.optim.integer_madam",
    "LNSConfig": "hf_relopt.hf.lns_config",
    "Madam": "hf_relopt.optim.madam",
    "Plan": "hf_relopt.plans.plan",
    "RelOptCallback": "hf_relopt.hf.callbacks",
    "RelOptError": "hf_relopt.errors",
    "RelOptMixin": "hf_relopt.hf.trainer",
    "RelOptTrainer": "hf_relopt.hf.trainer",
    "UnsupportedSetup": "hf_relopt.errors",
    "compress": "hf_relopt.hf.compression",
    "create_optimizer": "hf_relopt.optim.create",
    "decompress": "hf_relopt.hf.compression",
    "network_distance": "hf_relopt.distance.compare",
    "plan": "hf_relopt.optim.create",
    "plan_of": "hf_relopt.optim.current_plan",
    "register": "hf_relopt.hf.registration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_relopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _register(_: object) -> None:
    importlib.import_module("hf_relopt.hf.registration").register_on_import()


def _register_lns(_: object) -> None:
    importlib.import_module("hf_relopt.hf.lns_quantizer").register()


# Options are parsed as soon as the first module is there; the Trainer looks into the second, and is
# in the third.
import_hook.call_when_imported("transformers.training_args", _register)
import_hook.call_when_imported("transformers.trainer_optimizer", _register)
import_hook.call_when_imported("transformers.trainer", _register)
# from_pretrained asks it for what a config.json names.
import_hook.call_when_imported("transformers.quantizers.auto", _register_lns)
