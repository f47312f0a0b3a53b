"""Ways to run the same step: one dict, one word in the ``backend`` option."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hf_relopt.backends import codes, compiled, foreach, loop, packed, sums
from hf_relopt.backends.orthogonalize import orthogonalize
from hf_relopt.backends.packed import Formula
from hf_relopt.backends.part import Decision, Direct, Equation, OneLook, Part
from hf_relopt.backends.triton import kernel as triton_kernel
from hf_relopt.backends.triton import one_look, probe
from hf_relopt.backends.triton import packed as triton_packed
from hf_relopt.backends.triton import sums as triton_sums
from hf_relopt.backends.triton import update as triton_update
from hf_relopt.errors import ConfigError
from hf_relopt.rules.rule import Sums

_logger = logging.getLogger("hf_relopt")


@dataclass(frozen=True)
class Backend:
    """The verbs of the step, each for parts of one device, dtype and method.

    Attributes:
        sums: norms and cosines of every slice, [S, 1 to 3].
        update: an equation on every part, in place: the rule's, or that of the moments.
        orthogonalize: [rows, columns] matrices -> the orthogonalized ones.
        step_alone: if there is one, it comes first where nothing is sharded and the method is
            direct: it takes parts one by one from their sums to the new weights, while what the
            sums have read is still in the cache, and returns the places of those it left.
        work_out: a formula on packed numbers.
        step_in_one_look: if there is one, it comes first for rows that this rank has all of. It
            says whether it stepped them.
    """

    sums: Callable[[Sequence[Part], Sums], Tensor]
    update: Callable[[Sequence[Part], Equation, Decision], None]
    orthogonalize: Callable[[Sequence[Tensor]], list[Tensor]] = orthogonalize
    step_alone: Callable[[Direct], list[int]] | None = None
    work_out: Callable[[Formula, Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]] = (
        packed.work_out
    )
    step_in_one_look: Callable[[OneLook], bool] | None = None


BACKENDS: dict[str, Backend] = {
    "loop": Backend(sums.sums, loop.update),
    "foreach": Backend(sums.sums, foreach.update),
    "compiled": Backend(compiled.sums, compiled.update, step_alone=compiled.step_alone),
    "triton": Backend(
        triton_sums.sums,
        triton_update.update,
        work_out=triton_packed.work_out,
        step_in_one_look=one_look.step,
    ),
}


# Of weights in codes, which have no kernels in Triton: eager code steps them under "auto".
_OF_CODES = Backend(sums.sums, codes.update)
_OF_CODES_COMPILED = Backend(sums.sums, codes.update_compiled)

# Entries that are stepped on a CPU, those of all steps together, until a compilation has been paid
# for: foreach takes 2 ns more for each, and compiling five to thirty seconds.
PAID = 2**33


def backend_of(
    name: str, device: torch.device, dtype: torch.dtype = torch.float32, paid: bool = False
) -> Backend:
    """The backend that a ``backend`` option names, for weights of a dtype on a device.

    Args:
        paid: is it a CPU on which PAID entries have been stepped?

    Raises:
        ConfigError: it is "triton", which has no kernels for this device.
    """
    if name == "auto":
        return BACKENDS["compiled" if paid and compiles() else automatic(device, dtype)]
    if name == "triton" and not triton_kernel.serves(device):
        raise ConfigError(
            f"backend='triton' steps weights on a GPU ({' or '.join(triton_kernel.SERVED)}), but "
            f"these are on {device}. Move the model there before the first step, or leave backend "
            "at 'auto'."
        )
    return BACKENDS[name]


def backend_of_codes(name: str, paid: bool = False) -> Backend:
    """The backend that a ``backend`` option names, for weights that are stored in codes.

    Args:
        paid: as for ``backend_of``.

    Raises:
        ConfigError: it is "triton".
    """
    if name == "triton":
        raise ConfigError(
            "backend='triton' has no kernels for weights that are stored in codes. Leave backend "
            "at 'auto', under which the weights in plain numbers beside them are stepped by Triton "
            "where it runs, or choose 'compiled'."
        )
    is_compiled = name == "compiled" or (name == "auto" and paid and compiles())
    return _OF_CODES_COMPILED if is_compiled else _OF_CODES


@cache
def compiles() -> bool:
    """Say whether torch.compile works on this machine's CPU; a line in the log says it as well."""
    fault = compiled.fault()
    if fault is None:
        _logger.warning(
            "Compiling the optimizer's step for this CPU: it takes up to half a minute, once, and "
            "pays in a run as long as this one. backend='foreach' keeps the step as it was."
        )
        return True
    _logger.warning(
        "torch.compile does not work here (%s), so the optimizer's step stays as slow as it was. "
        "With a C++ compiler it would take a quarter of the time.",
        fault,
    )
    return False


@cache
def automatic(device: torch.device, dtype: torch.dtype) -> str:
    """What "auto" stands for on a device, before anything is paid. docs/decisions.md says why."""
    if device.type not in triton_kernel.SERVED or not triton_kernel.serves(device):
        return "foreach"
    fault = probe.fault(device, dtype)
    if fault is None:
        return "triton"
    _logger.warning(
        "Triton is installed, but does not step weights in %s on %s (%s). They are stepped by "
        "the slower backend 'foreach'; backend='foreach' chooses it without this line.",
        dtype,
        device,
        fault,
    )
    return "foreach"
