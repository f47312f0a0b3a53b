"""What kernels need, how many of them a step launches, and what a GPU's compiler makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage, Madam
from hf_relopt.backends import backend
from hf_relopt.backends.triton import kernel, packed, probe, sums, update
from tests.cases import HAS_TRITON
from tests.tensors import run

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def _shapes(dtype: torch.dtype) -> list[nn.Parameter]:
    shapes = [(6, 5), (4,), (3, 2, 2), (), (7, 40)] * 3
    return [nn.Parameter(torch.rand(shape).to(dtype)) for shape in shapes]


@needs_triton
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    ("build", "options"), [(Fromage, {}), (Fromage, {"p_bound": 1.0}), (Madam, {})], ids=str
)
def test_a_step_of_any_model_takes_at_most_eight_launches(
    build, options, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    launched = []
    launch = kernel.launch

    def counted(*given, **more):  # type: ignore[no-untyped-def]
        launched.append(given[0])
        launch(*given, **more)

    for module in (packed, sums, update):
        monkeypatch.setattr(module, "launch", counted)
    params = _shapes(torch.float32) + (_shapes(torch.bfloat16) if mixed else [])
    optimizer = build(params, backend="triton", **options)
    run(optimizer, params, (1, 2))
    launched.clear()
    run(optimizer, params, (3,))
    assert len(launched) == (8 if mixed else 5)


def test_a_missing_package_is_named_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    kernel.missing.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"backend is 'triton'.*not installed.*pip install"):
            Fromage([nn.Parameter(torch.ones(2))], backend="triton")
        assert not kernel.serves(CUDA)
    finally:
        kernel.missing.cache_clear()


@needs_triton
def test_an_old_release_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton, "__version__", "2.1.0")
    kernel.missing.cache_clear()
    try:
        assert kernel.missing() == "triton 2.1.0 is installed, which is older than 3.2"
    finally:
        kernel.missing.cache_clear()


@needs_triton
def test_weights_on_a_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    param = nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = Fromage([param], backend="triton")
    with pytest.raises(ConfigError, match=r"backend='triton'.*these are on cpu.*'auto'"):
        optimizer.step()
    assert param.tolist() == [1.0, 1.0]


@needs_triton
def test_a_weight_may_move_between_steps() -> None:
    """Under ``.data = ``, as offloading does, the step goes to where it is now."""
    moved, stayed = (nn.Parameter(torch.arange(1.0, 41.0)) for _ in "ab")
    one, other = (Fromage([param], backend="triton") for param in (moved, stayed))
    for number in (1, 2, 3):
        left = moved.data
        moved.data = left.clone()
        before = left.clone()
        for param, optimizer in ((moved, one), (stayed, other)):
            param.grad = torch.full((40,), float(number))
            optimizer.step()
        assert torch.equal(left, before), "the step went to where the weight was"
    assert torch.equal(moved, stayed)


@needs_triton
@pytest.mark.parametrize("direction", ["momentum", "spectral", "adam"])
def test_a_schedule_of_momenta_makes_no_kernels(direction: str) -> None:
    """Nor does the learning rate, nor a seed that differs from weight to weight."""
    params = [nn.Parameter(torch.rand(6, 4)), nn.Parameter(torch.rand(4))]
    optimizer = Fromage(params, direction=direction, backend="triton")
    run(optimizer, params, (1, 2))
    before = [update._step.cache_info().misses, packed._work.cache_info().misses]
    for number in range(3, 7):
        optimizer.param_groups[0].update(momentum=0.8 + number / 100, lr=0.01 / number)
        run(optimizer, params, (number,))
    assert [update._step.cache_info().misses, packed._work.cache_info().misses] == before


@needs_triton
def test_the_interpreter_serves_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the address of a GPU's tensor for one of its own."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernel.serves(CPU) and not kernel.serves(CUDA)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert kernel.serves(CUDA) and not kernel.serves(CPU)


@needs_triton
def test_auto_takes_kernels_where_they_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(probe, "fault", lambda device, dtype: None)
    f32, bf16 = torch.float32, torch.bfloat16
    backend.automatic.cache_clear()
    try:
        assert backend.automatic(CUDA, f32) == "triton"
        assert backend.automatic(CPU, f32) == "foreach"
        assert backend.automatic(torch.device("mps"), f32) == "foreach"
        backend.automatic.cache_clear()
        faults = {bf16: "PTXASError: bf16 requires sm_80"}
        monkeypatch.setattr(probe, "fault", lambda device, dtype: faults.get(dtype))
        with caplog.at_level("WARNING", "hf_relopt"):
            assert backend.automatic(CUDA, bf16) == backend.automatic(CUDA, bf16) == "foreach"
            assert backend.automatic(CUDA, f32) == "triton"
        (line,) = caplog.messages
        assert "requires sm_80" in line and "bfloat16" in line and "backend='foreach'" in line
    finally:
        backend.automatic.cache_clear()


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_gpus_and_keep_their_numbers_in_registers() -> None:
    """Ahead of time, for sm_80 and sm_90: no spills, and four numbers to a load."""
    script = Path(__file__).with_name("ahead_of_time.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 2 * 12
    for report in reports:
        assert report["stack"] == report["local"] == 0, report
        assert report["registers"] <= 128, report
        assert report["wide_loads"] > 0 or not report["tiles"], report
        assert report["contracted"] == 0, report
