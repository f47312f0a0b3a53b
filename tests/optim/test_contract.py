"""The contract crossed with optimizers, backends and dtypes.

Every law meets every case in float32 and in bfloat16 under foreach, and in the other dtypes where
they matter. Loop ends at foreach's bits in all cases (tests/backends/test_backend.py), so it meets
the laws with one case of each rule and of a direction, as compiled does. Triton's kernels, in its
interpreter, meet some laws with every case, since each is a kernel of its own.
"""

from __future__ import annotations

import pytest
import torch

from hf_relopt import Fromage
from tests import contract, contract_torch
from tests.cases import BY_NAME, CASES, DEFAULTS, HAS_TRITON, Case
from tests.contract import Law

LAWS = contract.LAWS + contract_torch.LAWS
# What hangs on the range and the digits of the weights' dtype.
OF_NUMBERS = (
    contract.law_zero_gradient_changes_no_bit,
    contract.law_zero_lr_changes_no_bit_but_counts,
    contract.law_non_finite_gradient_is_skipped,
    contract.law_gradient_beyond_the_numbers_is_skipped,
    contract.law_state_is_frozen_small_and_lazy,
    contract.law_measuring_changes_nothing,
    contract.law_copies_continue_bit_equal,
    contract_torch.law_finite_stays_finite_and_follows_oracle,
)
ALL_DTYPES = [BY_NAME[name] for name in ("fromage", "fromage-p_bound-1", "madam", "adamw-groups")]
# What loop meets, one of each kind. compiled takes a second or more for each program.
OF_LOOP = [BY_NAME[name] for name in ("fromage", "madam", "fromage-momentum-row")]
OF_COMPILED = [BY_NAME[name] for name in ("fromage", "madam", "fromage-momentum")]


OF_EACH_KERNEL = (
    contract.law_non_finite_gradient_is_skipped,
    contract_torch.law_finite_stays_finite_and_follows_oracle,
)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")


def _name(value: object) -> str:
    if isinstance(value, Case):
        return value.name
    if callable(value):
        return value.__name__.removeprefix("law_")
    return str(value).removeprefix("torch.")


each_law = pytest.mark.parametrize("law", LAWS, ids=_name)
each_law_of_numbers = pytest.mark.parametrize("law", OF_NUMBERS, ids=_name)


@pytest.mark.parametrize("case", CASES, ids=_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=_name)
@each_law
def test_law(law: Law, dtype: torch.dtype, case: Case) -> None:
    law(case, "foreach", dtype)


@pytest.mark.parametrize("case", ALL_DTYPES, ids=_name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=_name)
@each_law_of_numbers
def test_law_in_other_dtypes(law: Law, dtype: torch.dtype, case: Case) -> None:
    law(case, "foreach", dtype)


@pytest.mark.parametrize("case", OF_LOOP, ids=_name)
@each_law
def test_law_of_the_loop(law: Law, case: Case) -> None:
    law(case, "loop", torch.float32)


@pytest.mark.parametrize("case", OF_COMPILED, ids=_name)
@each_law
def test_law_compiled(law: Law, case: Case) -> None:
    law(case, "compiled", torch.float32)


@pytest.mark.parametrize("case", DEFAULTS, ids=_name)
@each_law_of_numbers
def test_law_compiled_with_noise(law: Law, case: Case) -> None:
    law(case, "compiled", torch.bfloat16)


@needs_triton
@pytest.mark.parametrize("case", OF_COMPILED, ids=_name)
@each_law
def test_law_of_kernels(law: Law, case: Case) -> None:
    law(case, "triton", torch.float32)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=_name)
@pytest.mark.parametrize("law", OF_EACH_KERNEL, ids=_name)
def test_law_of_each_kernel_with_noise(law: Law, case: Case) -> None:
    law(case, "triton", torch.bfloat16)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=_name)
@pytest.mark.parametrize("case", DEFAULTS, ids=_name)
@each_law_of_numbers
def test_law_of_kernels_in_other_dtypes(law: Law, case: Case, dtype: torch.dtype) -> None:
    law(case, "triton", dtype)


def test_a_law_can_fail() -> None:
    broken = Case("sgd", _Careless, BY_NAME["fromage"].oracle, BY_NAME["fromage"].state)
    with pytest.raises(AssertionError):
        contract.law_non_finite_gradient_is_skipped(broken, "loop", torch.float32)
    with pytest.raises(AssertionError):
        contract.law_zero_gradient_changes_no_bit(broken, "loop", torch.float32)


class _Careless(Fromage):
    """Fromage that also decays its weights, whatever the gradient says."""

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            for group in self.param_groups:
                torch._foreach_mul_(group["params"], 0.5)
        return super().step(closure)


# --- groups -------------------------------------------------------------------------------
