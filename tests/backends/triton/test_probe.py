"""A backend that does not run, or is wrong, is found before it steps a weight."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.backends.triton import packed, probe, sums, update
from tests.cases import DTYPES, HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_in_the_way_of_the_interpreter(dtype: torch.dtype) -> None:
    assert probe.fault(CPU, dtype) is None


@pytest.mark.parametrize("module", [packed, sums, update])
def test_what_does_not_run_is_told_in_words(module, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def fails(*given, **more):  # type: ignore[no-untyped-def]
        raise RuntimeError("Failed to find C compiler.\nSet CC.")

    monkeypatch.setattr(module, "launch", fails)
    assert probe.fault(CPU, torch.float32) == "RuntimeError: Failed to find C compiler."


@pytest.mark.parametrize("module", [packed, sums, update])
def test_what_is_wrong_is_noticed(module, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Kernels that do nothing leave zeros, or the weights as they were."""
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(module, "launch", lambda *given, **more: None)
    fault = probe.fault(CPU, torch.float32)
    assert fault == "its kernels do not give PyTorch's numbers in torch.float32"


def test_other_noise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = update.update

    def other(parts, equation, decision):  # type: ignore[no-untyped-def]
        if decision.keys is not None:
            decision.keys.add_(1)
        right(parts, equation, decision)

    monkeypatch.setattr(update, "update", other)
    fault = probe.fault(CPU, torch.bfloat16)
    assert fault == "its kernels do not give PyTorch's numbers in torch.bfloat16"
