"""Kernels from text: how one is made, launched, and what a machine needs for it."""

from __future__ import annotations

import itertools
import linecache
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

_serial = itertools.count()

_HEAD = """\
import triton
import triton.language as tl


@triton.jit(do_not_specialize={plain})
"""
# Contracted products would be rounded once where torch's are rounded twice: without them a kernel
# ends at the bits of the rule, and memory is what these kernels wait for.
# The noise is a hash, whose products are to wrap around: under TRITON_DEBUG that would be an error.
_OPTIONS = {"enable_fp_fusion": False}
_OPTIONS_OF = {"cuda": {**_OPTIONS, "sanitize_overflow": False}}
# Threads of a program, in units of 32: for tiles of entries, and for a few numbers.
TILE_WARPS, FEW_WARPS = 16, 4
# Devices that Triton compiles for. An AMD GPU calls itself cuda, too.
SERVED = ("cuda", "xpu")
# The oldest release that has all that the kernels are written in. torch 2.6 comes with 3.2.
OLDEST = (3, 2)


@cache
def missing() -> str | None:
    """What there is to install before kernels can be made, in words; None if nothing."""
    try:
        import triton
    except ImportError:
        return "the package triton is not installed"
    found = re.findall(r"\d+", triton.__version__)[:2]
    if tuple(map(int, found)) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"triton {triton.__version__} is installed, which is older than {oldest}"
    return None


def is_interpreted() -> bool:
    """Say whether kernels run in Triton's interpreter, where addresses are those of the host."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def serves(device: torch.device) -> bool:
    """Say whether kernels can run on tensors of this device."""
    devices = ("cpu",) if is_interpreted() else SERVED
    return device.type in devices and missing() is None


def kernel_of(text: str, plain: Sequence[str] = ()) -> Any:
    """The kernel that is defined by ``text``, one function. Triton asks for its source again.

    Args:
        plain: integers among its arguments that it is not compiled anew for.
    """
    source = _HEAD.format(plain=list(plain)) + text
    name = f"<hf_relopt kernel {next(_serial)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "hf_relopt.kernels"}
    exec(compile(source, name, "exec"), namespace)
    (found,) = [each for key, each in namespace.items() if key not in _NOT_KERNELS]
    return found


_NOT_KERNELS = {"__name__", "__builtins__", "triton", "tl"}


def launch(
    kernel: Any,
    programs: int,
    device: torch.device,
    arguments: tuple[Any, ...],
    constants: Mapping[str, int],
    *,
    warps: int = FEW_WARPS,
) -> None:
    """Run ``programs`` programs of a kernel on the current stream of a device."""
    with _on(device):
        options = _OPTIONS_OF.get(device.type, _OPTIONS)
        kernel[(programs,)](*arguments, **constants, **options, num_warps=warps)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """A launch goes to the current device, which may be another one than the tensors'."""
    if is_interpreted():
        return _quietly()
    module: Any = torch.get_device_module(device)
    if device.index is None or device.index == module.current_device():
        return nullcontext()
    context: Callable[[torch.device], AbstractContextManager[Any]] = module.device
    return context(device)


def _quietly() -> AbstractContextManager[Any]:
    """NumPy warns where a kernel divides by a zero and masks the result."""
    import numpy as np

    return np.errstate(all="ignore")
