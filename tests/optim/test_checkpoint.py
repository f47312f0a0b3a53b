"""The checkpoint contract: files, continuing bit-equal, refusing what is not ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_relopt import Fromage, Madam
from hf_relopt.errors import RelOptError
from tests.cases import CASES_AND_DTYPES, DEFAULTS, Case
from tests.loads import assert_equal, everything, refuses
from tests.tensors import (
    Optimizer,
    gradient,
    run,
    same_bits,
    set_gradients,
    snapshot,
    start,
    state_of,
    weights,
)


def _name(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value).removeprefix("torch.")


each_case_and_dtype = pytest.mark.parametrize(("case", "dtype"), CASES_AND_DTYPES, ids=_name)
each_default = pytest.mark.parametrize("case", DEFAULTS, ids=_name)


def _save(path: Path, params: list[nn.Parameter], optimizer: Optimizer) -> None:
    torch.save({"weights": snapshot(params), "optimizer": optimizer.state_dict()}, path)


def _load(path: Path, params: list[nn.Parameter], optimizer: Optimizer) -> None:
    saved = torch.load(path, weights_only=True)
    with torch.no_grad():
        for param, weight in zip(params, saved["weights"], strict=True):
            param.copy_(weight)
    optimizer.load_state_dict(saved["optimizer"])


# --- continuing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "dtype", "rounding"),
    [
        *[(case, dtype, "stochastic") for case, dtype in CASES_AND_DTYPES],
        *[(case, torch.bfloat16, "nearest") for case in DEFAULTS],
    ],
    ids=_name,
)
def test_resume_is_bit_equal_to_not_stopping(
    case: Case, dtype: torch.dtype, rounding: str, tmp_path: Path
) -> None:
    params, optimizer = start(case, "foreach", dtype, rounding=rounding, seed=5)
    run(optimizer, params, (1, 2))
    set_gradients(params, 3)
    params[0].grad[0, 0] = float("nan")  # counters and step counts part between tensors
    params[1].grad = None
    optimizer.step()
    _save(tmp_path / "checkpoint.pt", params, optimizer)
    run(optimizer, params, (4, 5, 6))
    # The fresh optimizer has other options at construction: the checkpoint's hold.
    fresh = weights(dtype)
    other = case.make(fresh, lr=0.5, backend="foreach", rounding="nearest", seed=99)
    _load(tmp_path / "checkpoint.pt", fresh, other)
    run(other, fresh, (4, 5, 6))
    assert_equal(everything(optimizer), everything(other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=_name)
@each_default
def test_resume_compiled_is_bit_equal(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    params, optimizer = start(case, "compiled", dtype)
    run(optimizer, params, (1, 2))
    _save(tmp_path / "checkpoint.pt", params, optimizer)
    run(optimizer, params, (3, 4))
    fresh, other = start(case, "compiled", dtype)
    _load(tmp_path / "checkpoint.pt", fresh, other)
    run(other, fresh, (3, 4))
    assert_equal(everything(optimizer), everything(other))


@each_default
def test_a_checkpoint_of_one_backend_continues_under_another(case: Case) -> None:
    params, optimizer = start(case, "loop", torch.bfloat16)
    run(optimizer, params, (1, 2))
    fresh = [nn.Parameter(weight) for weight in snapshot(params)]
    other = case.make(fresh, backend="foreach")
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["backend"] == "foreach"
    run(other, fresh, (3,))


@each_case_and_dtype
def test_state_keeps_its_dtype_and_bits_through_a_file(
    case: Case, dtype: torch.dtype, tmp_path: Path
) -> None:
    params, optimizer = start(case, "foreach", dtype)
    run(optimizer, params, (1, 2, 3))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    fresh, other = start(case, "foreach", dtype)
    other.load_state_dict(saved)
    for param, twin in zip(params, fresh, strict=True):
        mine, theirs = state_of(optimizer, param), state_of(other, twin)
        assert set(theirs) == case.state
        assert all(same_bits(mine[key], theirs[key]) for key in mine)
        assert all(value.dtype == case.state_dtype(key) for key, value in theirs.items())


@each_default
def test_anchors_are_not_made_again_from_trained_weights(case: Case) -> None:
    params, optimizer = start(case, "foreach", torch.float32, lr=0.25)
    run(optimizer, params, range(1, 6))
    anchors = [state_of(optimizer, param)["anchor_norm"].clone() for param in params]
    trained = [nn.Parameter(2 * weight) for weight in snapshot(params)]
    other = case.make(trained)
    other.load_state_dict(optimizer.state_dict())
    run(other, trained, (6, 7))
    for param, anchor in zip(trained, anchors, strict=True):
        assert same_bits(state_of(other, param)["anchor_norm"], anchor)
    assert float(anchors[2]) == 0, "which rule a zero-start tensor follows is state"


@each_default
def test_loading_shares_no_memory_with_the_dict(case: Case) -> None:
    params, optimizer = start(case, "foreach", torch.float32)
    run(optimizer, params, (1,))
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    fresh, other = start(case, "foreach", torch.float32)
    other.load_state_dict(saved)
    run(other, fresh, (2, 3))
    for index, state in kept["state"].items():
        assert all(same_bits(value, saved["state"][index][key]) for key, value in state.items())


@each_default
def test_a_checkpoint_before_the_first_step_loads(case: Case, tmp_path: Path) -> None:
    params, optimizer = start(case, "foreach", torch.bfloat16)
    _save(tmp_path / "checkpoint.pt", params, optimizer)
    fresh, other = start(case, "foreach", torch.bfloat16)
    _load(tmp_path / "checkpoint.pt", fresh, other)
    run(optimizer, params, (1,))
    run(other, fresh, (1,))
    assert_equal(everything(optimizer), everything(other))


@each_default
def test_a_partly_frozen_run_loads(case: Case, tmp_path: Path) -> None:
    """Tensors that had no gradient have no state, before and after."""
    params, optimizer = start(case, "foreach", torch.float32)
    set_gradients(params, 1)
    params[1].grad = None
    optimizer.step()
    _save(tmp_path / "checkpoint.pt", params, optimizer)
    fresh, other = start(case, "foreach", torch.float32)
    _load(tmp_path / "checkpoint.pt", fresh, other)
    assert not state_of(other, fresh[1])
    run(optimizer, params, (2,))
    run(other, fresh, (2,))
    assert_equal(everything(optimizer), everything(other))


@each_default
def test_names_rates_and_foreign_keys_come_back(case: Case, tmp_path: Path) -> None:
    def named() -> Optimizer:
        a, b, c = weights(torch.float32)
        groups = [
            {"params": [("a", a), ("b", b)], "lr": torch.tensor(0.25), "weight_decay": 0.0},
            {"params": [("c", c)], "initial_lr": 0.125, "note": "mine"},
        ]
        return case.make(groups)

    optimizer, other = named(), named()
    optimizer.param_groups[0]["lr"].fill_(0.0625)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    first, second = other.param_groups
    assert first["param_names"] == ["a", "b"] and first["weight_decay"] == 0.0
    assert isinstance(first["lr"], torch.Tensor) and float(first["lr"]) == 0.0625
    assert second["note"] == "mine" and second["initial_lr"] == 0.125


@each_default
def test_torchs_state_dict_hooks_work(case: Case) -> None:
    params, optimizer = start(case, "foreach", torch.float32)
    run(optimizer, params, (1,))
    seen: list[str] = []
    fresh, other = start(case, "foreach", torch.float32)
    optimizer.register_state_dict_post_hook(lambda opt, saved: seen.append("saved"))
    other.register_load_state_dict_pre_hook(lambda opt, saved: seen.append("loading"))
    other.register_load_state_dict_post_hook(lambda opt: seen.append("loaded"))
    other.load_state_dict(optimizer.state_dict())
    assert seen == ["saved", "loading", "loaded"]
    run(other, fresh, (2,))


@each_default
def test_distributed_checkpoints_create_and_restore_state(case: Case) -> None:
    """They step once with zero gradients and lr 0 to make state: not one bit may change."""
    api = pytest.importorskip("torch.distributed.checkpoint.state_dict")

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(torch.bfloat16)

    first = model()
    optimizer = case.make(first.parameters())
    run(optimizer, list(first.parameters()), (1, 2))
    _, saved = api.get_state_dict(first, optimizer)
    second = model()
    other = case.make(second.parameters())
    before = snapshot(second.parameters())
    api.get_state_dict(second, other)
    assert all(same_bits(a, b) for a, b in zip(second.parameters(), before, strict=True))
    api.set_state_dict(
        second, other, model_state_dict=first.state_dict(), optim_state_dict=copy.deepcopy(saved)
    )
    assert_equal(everything(optimizer), everything(other))
    run(optimizer, list(first.parameters()), (3,))
    run(other, list(second.parameters()), (3,))
    assert_equal(everything(optimizer), everything(other))


# --- refusing -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("author", "name"),
    [
        (lambda params: torch.optim.AdamW(params), "AdamW"),
        (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9), "SGD"),
        (lambda params: torch.optim.RMSprop(params), "another optimizer"),
    ],
    ids=["adamw", "sgd", "rmsprop"],
)
@pytest.mark.parametrize("stepped", [True, False])
@each_default
def test_foreign_checkpoint_is_refused(case: Case, stepped: bool, author, name: str) -> None:  # type: ignore[no-untyped-def]
    params, optimizer = start(case, "foreach", torch.float32)
    run(optimizer, params, (1,))
    others = weights(torch.float32)
    other = author(others)
    if stepped:
        run(other, others, (1,))
    refuses(optimizer, other.state_dict(), name, type(optimizer).__name__, "afresh|resume")


@pytest.mark.parametrize("stepped", [True, False])
def test_fromage_and_madam_refuse_each_other(stepped: bool) -> None:
    for one, other in ((Fromage, Madam), (Madam, Fromage)):
        theirs, mine = weights(torch.float32), weights(torch.float32)
        writer, reader = one(theirs), other(mine)
        if stepped:
            run(writer, theirs, (1,))
            run(reader, mine, (1,))
        refuses(reader, writer.state_dict(), "fromage", "madam")


@pytest.mark.parametrize("shapes", [[(4, 3)], [(4, 3)] * 4, [(4, 3), (4, 3), (3, 4)]])
@each_default
def test_another_models_checkpoint_is_refused(case: Case, shapes: list[tuple[int, int]]) -> None:
    theirs = [nn.Parameter(gradient(torch.empty(shape), 1)) for shape in shapes]
    writer = case.make(theirs)
    run(writer, theirs, (1,))
    params, optimizer = start(case, "foreach", torch.float32)
    run(optimizer, params, (1,))
    refuses(optimizer, writer.state_dict(), "model")


@each_default
def test_a_damaged_checkpoint_is_refused(case: Case) -> None:
    params, optimizer = start(case, "foreach", torch.float32)
    run(optimizer, params, (1,))
    for key in sorted(case.state):
        saved = copy.deepcopy(optimizer.state_dict())
        del saved["state"][0][key]
        refuses(optimizer, saved, key)
    with pytest.raises(RelOptError):
        optimizer.load_state_dict({})
    with pytest.raises(RelOptError):
        optimizer.load_state_dict({"model": {}, "param_groups": []})


def _with(saved: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy whose first group has other options."""
    other = copy.deepcopy(saved)
    other["param_groups"][0].update(changes)
    return other


def _with_state(saved: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy whose first weight has other state."""
    other = copy.deepcopy(saved)
    other["state"][0].update(changes)
    return other


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("kind", "name", "value", "words"), [
    (Fromage, "p_bound", -1, ("-1", "> 0")),
    (Fromage, "lr", "0.01", ("'0.01'", "0 <= lr < 1")),
    (Fromage, "lr", NAN, ("nan",)),
    (Fromage, "lr_factor", -3.0, ("-3.0",)),
    (Fromage, "maximize", "no", ("'no'", "True or False")),
    (Fromage, "weight_decay", 0.1, ("weight_decay", "p_bound")),
    (Fromage, "rounding", 7, ("rounding",)),
    (Fromage, "seed", "0", ("seed",)),
    (Fromage, "p_bond", 1.0, ("p_bond",)),
    (Fromage, "bound", ["sphere"], ("bound",)),
    (Fromage, "split_sizes", 3, ("split_sizes", "splits nothing")),
    (Madam, "beta", 2, ("beta is 2",)),
    (Madam, "g_bound", None, ("g_bound",)),
    (Madam, "p_scale", INF, ("inf",)),
    (Madam, "min_scale", {}, ("min_scale",)),
    (Madam, "p_scale", 10**400, ("p_scale",)),
    (Fromage, "lr", 10**400, ("0 <= lr",)),
    (Fromage, "lr", torch.tensor(0.1, device="meta"), ("0 <= lr",)),
    (Fromage, "direction", np.array(["a", "b"]), ("direction",)),
    (Fromage, "weight_decay", np.zeros(2), ("weight_decay",)),
    (Fromage, "initial_lr", "x", ("is 'x'",)),
    (Fromage, "initial_lr", NAN, ("is nan",)),
    (Fromage, "param_names", 5, ("param_names",)),
])  # fmt: skip
def test_bad_options_of_a_checkpoint_are_refused(
    kind: Any, name: str, value: object, words: tuple[str, ...]
) -> None:
    params = weights(torch.float32)
    optimizer = kind(params)
    run(optimizer, params, (1,))
    refuses(optimizer, _with(optimizer.state_dict(), **{name: value}), name, *words)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("step", torch.tensor(NAN), ("nan",)),
    ("step", torch.tensor(INF), ("inf",)),
    ("step", torch.tensor(-1.0), ("-1",)),
    ("step", "3", ("'3'", "str")),
    ("step", 3, ("int",)),
    ("step", None, ("None",)),
    ("step", torch.tensor(3), ("int64", "float32")),
    ("step", torch.ones(2), (r"\(2,\)",)),
    ("skipped", torch.tensor(NAN), ("nan",)),
    ("anchor_norm", torch.ones(4), (r"\(4,\)", r"\(1,\)")),
    ("anchor_norm", torch.ones(0), (r"\(0,\)",)),
    ("anchor_norm", torch.tensor([-1.0]), ("-1",)),
    ("anchor_norm", torch.tensor([INF]), ("inf",)),
    ("anchor_norm", torch.tensor([1.0], dtype=torch.float64), ("float64",)),
    ("second_moment", torch.ones(3, 4), (r"\(3, 4\)", r"\(4, 3\)")),
    ("second_moment", torch.ones(4, 3, dtype=torch.bfloat16), ("bfloat16",)),
    ("second_moment", [0.0] * 12, ("list",)),
    ("second_moment", torch.ones(4, 3).to_sparse(), ("sparse",)),
    ("second_moment", torch.ones(4, 3, device="meta"), ("meta",)),
    ("second_moment", torch.full((4, 3), NAN), ("not finite",)),
    ("second_moment", torch.full((4, 3), INF), ("not finite",)),
    ("second_moment", torch.full((4, 3), -1.0), ("-1", "numbers >= 0")),
    ("step", torch.tensor(2.5), ("2.5", "counts")),
    ("step", torch.tensor(1e38), ("1e\\+38", "counts")),
])  # fmt: skip
def test_bad_state_of_a_checkpoint_is_refused(
    name: str, value: object, words: tuple[str, ...]
) -> None:
    params = weights(torch.float32)
    optimizer = Madam(params)
    run(optimizer, params, (1,))
    refuses(optimizer, _with_state(optimizer.state_dict(), **{name: value}), name, *words)


@pytest.mark.parametrize("scale", ["row", "block"])
def test_anchors_of_another_cut_are_refused(scale: str) -> None:
    given = {"split_sizes": 2} if scale == "block" else {}
    params = weights(torch.float32)
    optimizer = Fromage(params, direction="momentum", scale=scale, **given)
    run(optimizer, params, (1,))
    saved = optimizer.state_dict()
    refuses(optimizer, _with_state(saved, anchor_norm=torch.ones(3)), "anchor_norm", r"\(3,\)")


@pytest.mark.parametrize("given", [None, 5, [1], "optimizer.pt"])
def test_what_is_no_state_dict_is_refused(given: object) -> None:
    refuses(Fromage(weights(torch.float32)), given, "not an optimizer checkpoint")


@pytest.mark.parametrize("damage", [
    {"state": None}, {"state": []}, {"state": {0: None}}, {"state": {0: 3}}, {"param_groups": {}},
    {"param_groups": None}, {"param_groups": ["x"]}, {"param_groups": [{}]},
    {"param_groups": [{"params": 3}]}, {"param_groups": [{"params": [[1]]}]},
    {"param_groups": [{"params": [0, 1, 2], "rule": ["fromage"]}]},
])  # fmt: skip
def test_a_checkpoint_of_the_wrong_kind_is_refused(damage: dict[str, Any]) -> None:
    params, optimizer = start(DEFAULTS[0], "foreach", torch.float32)
    run(optimizer, params, (1,))
    refuses(optimizer, {**optimizer.state_dict(), **damage}, "checkpoint")


def test_state_of_no_weight_is_refused() -> None:
    params, optimizer = start(DEFAULTS[0], "foreach", torch.float32)
    run(optimizer, params, (1,))
    for key in ("weight", 17):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][key] = saved["state"].pop(0)
        refuses(optimizer, saved, repr(key), "damaged")


def test_what_json_makes_of_tuples_loads(tmp_path: Path) -> None:
    """As lists; ``compiled`` keys its programs by them."""
    adamw = {"rule": "adamw", "lr": 1e-3, "betas": (0.5, 0.75)}

    def build() -> tuple[list[nn.Parameter], Fromage]:
        params = weights(torch.float32)
        return params, Fromage([{"params": params, **adamw}], backend="compiled")

    params, optimizer = build()
    run(optimizer, params, (1,))
    fresh, other = build()
    with torch.no_grad():
        for param, weight in zip(fresh, params, strict=True):
            param.copy_(weight)
    other.load_state_dict(_with(optimizer.state_dict(), betas=[0.5, 0.75]))
    run(optimizer, params, (2,))
    run(other, fresh, (2,))
    assert all(map(same_bits, params, fresh))


def test_groups_of_adamw_from_before_it_had_a_factor_load_and_go_on_bit_equal() -> None:
    groups = [{"rule": "adamw", "lr": 1e-3, "lr_factor": factor} for factor in (None, 0.5)]
    saved, ends = None, []
    for steps in ((1, 2), (2,)):
        params = weights(torch.float32)
        half = len(params) // 2
        parts = (params[:half], params[half:])
        optimizer = Fromage(
            [{"params": part, **group} for part, group in zip(parts, groups, strict=True)]
        )
        if saved is not None:
            optimizer.load_state_dict(saved[0])
            with torch.no_grad():
                for param, weight in zip(params, saved[1], strict=True):
                    param.copy_(weight)
        for step in steps:
            run(optimizer, params, (step,))
            if saved is None:
                saved = copy.deepcopy((optimizer.state_dict(), params))
                assert "lr_factor" not in saved[0]["param_groups"][0]
        ends.append(params)
        assert [group["lr_factor"] for group in optimizer.param_groups] == [None, 0.5]
    assert all(map(same_bits, *ends))


# --- names --------------------------------------------------------------------------------


def test_loading_no_state_makes_none() -> None:
    """Accelerate loads an optimizer's own dict into it, and swaps its weights afterwards."""
    optimizer = Madam(weights(torch.float32))
    optimizer.load_state_dict(optimizer.state_dict())
    assert not optimizer.state
