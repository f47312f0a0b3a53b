"""A steady step never waits for the device: nothing in it reads a tensor's value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cases import BACKENDS, BY_NAME, CASES, DEFAULTS, Case
from tests.tensors import gradient, run, set_gradients, start

# what makes the host wait on an accelerator: reading a value, or a shape that hangs on values
_WAITS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::allclose",
}


# What reads a CPU's tensor without an operation, and copies one from another device.
_READS = ("tolist", "numpy", "cpu")


class HostSync(AssertionError):
    """An operation in a steady step would wait for the device."""


class _Forbid(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in _WAITS:
            raise HostSync(func._schema.name)
        if func._schema.name == "aten::index" and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1]
        ):
            raise HostSync("aten::index with a mask")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_sync() -> Iterator[None]:
    """Forbid host synchronisation; compiled code runs as the Python it was compiled from.

    torch.compile does not work under a dispatch mode. Its kernels are compiled in one graph
    (fullgraph), in which a read value is an error by itself.
    """
    with (
        torch.compiler.set_stance("force_eager"),
        _Forbid(),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in _READS:
            patch.setattr(torch.Tensor, name, _read)
        yield


def _read(*_: Any) -> None:
    raise HostSync("a tensor is read")


def _name(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


def test_the_mode_sees_a_sync() -> None:
    tensor = torch.ones(3)
    for careless in (
        lambda: tensor.sum().item(),
        lambda: float(tensor[0]),
        lambda: bool((tensor > 0).all()),
        lambda: tensor[tensor > 0],
        lambda: tensor.nonzero(),
        lambda: tensor.tolist(),
        lambda: tensor.numpy(),
    ):
        with pytest.raises(HostSync), no_host_sync():
            careless()


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float-lr", "tensor-lr"])
@pytest.mark.parametrize(
    ("backend", "case", "dtype"),
    [
        *[("foreach", case, dtype) for case in CASES for dtype in (torch.float32, torch.bfloat16)],
        *[("loop", case, torch.bfloat16) for case in (*DEFAULTS, BY_NAME["fromage-momentum-row"])],
    ],
    ids=_name,
)
def test_steady_step_never_syncs(
    backend: str, case: Case, dtype: torch.dtype, tensor_lr: bool
) -> None:
    lr = torch.tensor(0.01) if tensor_lr else 0.01
    params, optimizer = start(case, backend, dtype, lr=lr)
    run(optimizer, params, (1,))
    for number in (2, 3):
        set_gradients(params, number)
        params[0].grad[0, 0] = float("nan")
        params[1].grad.zero_()
        with no_host_sync():
            optimizer.step()
    set_gradients(params, 4)
    params[1].grad = None
    with no_host_sync():
        optimizer.step()


@pytest.mark.parametrize("name", ["fromage-momentum", "fromage-spectral", "fromage-momentum-row"])
def test_a_momentum_that_a_schedule_changes_in_every_step_never_syncs(name: str) -> None:
    """Another momentum is another method and makes other slots; what is known of anchors stays."""
    params, optimizer = start(BY_NAME[name], "foreach", torch.bfloat16)
    run(optimizer, params, (1,))
    for number in range(2, 6):
        optimizer.param_groups[0].update(momentum=0.5 + 0.05 * number, lr=0.01 * number)
        set_gradients(params, number)
        with no_host_sync():
            optimizer.step()


@pytest.mark.parametrize("name", ["fromage", "fromage-momentum"])
def test_a_set_of_weights_that_was_never_met_before_never_syncs(name: str) -> None:
    params, optimizer = start(BY_NAME[name], "foreach", torch.float32)
    run(optimizer, params, (1,))
    for having in ((0,), (1, 2), (0, 2), (2,)):
        set_gradients(params, 2)
        for place, param in enumerate(params):
            param.grad = param.grad if place in having else None
        with no_host_sync():
            optimizer.step()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(BY_NAME["fromage"], torch.bfloat16), (BY_NAME["madam"], torch.float32)],
    ids=_name,
)
def test_compiled_steady_step_never_syncs(case: Case, dtype: torch.dtype) -> None:
    """Both what torch.compile made, one graph without a break, and what it was made from."""
    params, optimizer = start(case, "compiled", dtype, lr=torch.tensor(0.01))
    torch._dynamo.utils.counters.clear()
    run(optimizer, params, (1,))
    assert not torch._dynamo.utils.counters["graph_break"]
    set_gradients(params, 2)
    with no_host_sync():
        optimizer.step()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", DEFAULTS, ids=_name)
def test_telemetry_step_reads_nothing_until_asked(case: Case, backend: str) -> None:
    params, optimizer = start(case, backend, torch.float32)
    run(optimizer, params, (1,))
    set_gradients(params, 2)
    optimizer.measure_next_step()
    with no_host_sync():
        optimizer.step()
    assert optimizer.take_measurement()["relative_update"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=_name)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", DEFAULTS, ids=_name)
def test_cuda_itself_sees_no_sync(case: Case, backend: str, dtype: torch.dtype) -> None:
    params = [nn.Parameter(torch.randn(64, 32, dtype=dtype, device="cuda")) for _ in range(4)]
    lr = torch.tensor(0.01, device="cuda")
    optimizer = case.make(params, lr=lr, backend=backend)
    for number in (1, 2, 3):
        for param in params:
            param.grad = gradient(torch.empty(64, 32, dtype=dtype), number).cuda()
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
