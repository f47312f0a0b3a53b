"""Integer Madam: the laws of a step, the memory it takes, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from hf_relopt import ConfigError, Fromage, IntegerMadam, Madam, create_optimizer
from hf_relopt.lns.format import FORMATS, LNSFormat
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.nn.compression import convert
from tests.hf.tiny import gpt2, rows
from tests.oracles.integer_madam import rises

FORM = FORMATS["lns8"]
SHAPE = (6, 8)


def weight(seed: int = 0, form: LNSFormat = FORM) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(LNSTensor.from_float(0.1 * torch.randn(SHAPE, generator=generator), form))


def gradient(step: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + step))


def levels(param: LNSTensor) -> torch.Tensor:
    from hf_relopt.lns.packing import unpack_rows

    return unpack_rows(param.packed, param.form.bits, param.columns) & param.form.levels


def run(optimizer: torch.optim.Optimizer, param: nn.Parameter, steps: range) -> None:
    for step in steps:
        param.grad = gradient(step, tuple(param.shape))
        optimizer.step()


def bits_of(optimizer: torch.optim.Optimizer, param: LNSTensor) -> list[torch.Tensor]:
    state = optimizer.state.get(param, {})
    return [param.packed.clone(), *[state[name].clone() for name in sorted(state)]]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other)) and len(one) == len(other)


@pytest.mark.parametrize("second_moment", ["lns8", "float32"])
def test_steps_are_the_oracles_on_average(second_moment):
    """Entries in which many seeds differ only by their rounding."""
    grads = [gradient(step) for step in range(3)]
    start, total, count = weight(), torch.zeros(SHAPE, dtype=torch.float64), 300
    expected = rises((start < 0).detach().numpy(), [g.numpy() for g in grads], 0.02, FORM.spacing)
    for seed in range(count):
        param = copy.deepcopy(start)
        optimizer = IntegerMadam([param], 0.02, seed=seed, second_moment=second_moment)
        run(optimizer, param, range(3))
        total += levels(param) - levels(start)
    mean, wanted = total / count, torch.from_numpy(sum(expected))
    # Three roundings with a standard deviation of at most a half, and a moment off by its own.
    assert float((mean - wanted).abs().max()) < 4 * 0.87 / count**0.5 + 0.1 * float(
        wanted.abs().max()
    )


def test_a_learning_rate_far_below_a_level_still_trains():
    param = nn.Parameter(LNSTensor.from_float(torch.full((50, 80), 0.1), FORM))
    optimizer = IntegerMadam([param], lr=FORM.spacing / 100)
    before = levels(param).double().mean()
    for _ in range(40):
        param.grad = torch.ones(50, 80)
        optimizer.step()
    fallen = before - levels(param).double().mean()
    assert float(fallen) == pytest.approx(0.4, rel=0.1)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_gradients_change_nothing(zero):
    param = weight()
    optimizer = IntegerMadam([param])
    run(optimizer, param, range(2))
    before = bits_of(optimizer, param)
    param.grad = torch.full(SHAPE, zero)
    optimizer.step()
    assert same(before, bits_of(optimizer, param))


def test_no_learning_rate_changes_no_code_but_counts():
    for lr in (0.0, torch.tensor(0.0)):
        param = weight()
        packed = param.packed.clone()
        optimizer = IntegerMadam([param], lr=lr)
        run(optimizer, param, range(2))
        assert torch.equal(param.packed, packed)
        assert float(optimizer.state[param]["step"]) == 2
        assert bool(optimizer.state[param]["second_moment"].any())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_gradients_that_are_not_finite_are_skipped(bad):
    param = weight()
    optimizer = IntegerMadam([param])
    run(optimizer, param, range(1))
    before = param.packed.clone()
    param.grad = torch.full(SHAPE, bad)
    optimizer.step()
    assert torch.equal(param.packed, before)
    assert float(optimizer.state[param]["skipped"]) == 1
    assert float(optimizer.state[param]["step"]) == 1


def test_no_gradient_makes_no_state():
    one, other = weight(0), weight(1)
    optimizer = IntegerMadam([one, other])
    run(optimizer, one, range(1))
    assert not optimizer.state.get(other)


def test_maximize_goes_the_other_way():
    down, up = weight(), weight()
    for param, maximize, sign in ((down, False, 1), (up, True, -1)):
        optimizer = IntegerMadam([param], maximize=maximize)
        for step in range(3):
            param.grad = sign * gradient(step)
            optimizer.step()
    assert torch.equal(down.packed, up.packed)


def test_state_is_a_byte_per_weight_and_few_per_row():
    """With the weights at most 2.1 bytes in LNS8, and 2.6 in LNS12 (AdamW in float32: 12)."""
    for name, most in (("lns8", 2.1), ("lns12", 2.6)):
        param = nn.Parameter(LNSTensor.from_float(torch.randn(768, 768), FORMATS[name]))
        optimizer = IntegerMadam([param])
        param.grad = torch.randn(768, 768)
        optimizer.step()
        held = [param.packed, param.scale, *optimizer.state[param].values()]
        total = sum(tensor.untyped_storage().nbytes() for tensor in held)
        assert total / param.numel() <= most
    float32 = IntegerMadam([param], second_moment="float32")
    float32.step()
    assert float32.state[param]["second_moment"].dtype is torch.float32


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("second_moment", ["lns8", "float32"])
def test_saved_and_loaded_it_goes_on_to_the_bit(name, second_moment):
    param = weight(form=FORMATS[name])
    optimizer = IntegerMadam([param], second_moment=second_moment)
    run(optimizer, param, range(3))
    buffer = io.BytesIO()
    torch.save({"model": param, "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = saved["model"]
    resumed = IntegerMadam([other], second_moment=second_moment)
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.state[other]["second_moment"].dtype in (torch.uint8, torch.float32)
    pickled = pickle.loads(pickle.dumps(optimizer))
    run(optimizer, param, range(3, 6))
    run(resumed, other, range(3, 6))
    last = pickled.param_groups[0]["params"][0]
    run(pickled, last, range(3, 6))
    assert same(bits_of(optimizer, param), bits_of(resumed, other))
    assert same(bits_of(optimizer, param), bits_of(pickled, last))


def test_a_checkpoint_with_another_second_moment_is_refused():
    param = weight()
    optimizer = IntegerMadam([param])
    run(optimizer, param, range(1))
    state = optimizer.state_dict()
    state["param_groups"][0]["second_moment"] = "float32"
    with pytest.raises(ConfigError, match=r"second_moment has dtype torch\.uint8"):
        IntegerMadam([param]).load_state_dict(state)


def test_what_is_in_numbers_follows_madam():
    bias, twin = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    fresh, fresh_twin = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
    codes = weight()
    ours = IntegerMadam([codes, bias, fresh], 0.02, beta=0.9, p_scale=1.5)
    madam = Madam([twin, fresh_twin], 0.02, beta=0.9, p_scale=1.5)
    for step in range(4):
        for param, other in ((bias, twin), (fresh, fresh_twin)):
            param.grad = gradient(step, (5,))
            other.grad = param.grad.clone()
        codes.grad = gradient(step)
        ours.step()
        madam.step()
    assert torch.equal(bias, twin) and torch.equal(fresh, fresh_twin)
    assert set(ours.state[bias]) == set(madam.state[twin])


def test_models_without_codes_and_codes_without_it_are_refused():
    with pytest.raises(ConfigError, match=r"hf_relopt.compress\(model.*LNSConfig"):
        IntegerMadam(nn.Linear(3, 3).parameters())
    for make in (Fromage, Madam):
        with pytest.raises(ConfigError, match="is stored in lns8, whose codes"):
            make([weight()])
    with pytest.raises(ConfigError, match="second_moment is 'int8'"):
        IntegerMadam([weight()], second_moment="int8")
    with pytest.raises(ConfigError, match=r"backend='triton' has no kernels .* in codes"):
        IntegerMadam([weight()], backend="triton")
    model = gpt2()
    with pytest.raises(ConfigError, match=r"hf_relopt.compress\(model"):
        create_optimizer(model, "integer_madam")
    convert(model)
    with pytest.raises(ConfigError, match=r"transformer\.wte\.weight .* is stored in lns8"):
        create_optimizer(model, "fromage")


def loss_of(model: nn.Module) -> torch.Tensor:
    ids = torch.stack([row["input_ids"] for row in rows(8)])
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_model_learns_in_codes(in_backward):
    model = gpt2()
    convert(model, "lns8")
    optimizer = create_optimizer(model, "integer_madam", 0.02, step_in_backward=in_backward)
    first = float(loss_of(model).detach())
    for _ in range(60):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss_of(model).detach()) < first - 0.5


def test_steps_in_the_backward_pass_are_the_same():
    made = []
    for in_backward in (False, True):
        model = gpt2()
        convert(model, "lns10")
        optimizer = create_optimizer(model, "integer_madam", 0.02, step_in_backward=in_backward)
        for _ in range(3):
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
        made.append(model)
    for one, other in zip(*[model.parameters() for model in made], strict=True):
        assert torch.equal(one, other)


def test_a_step_is_measured():
    model = gpt2()
    convert(model, "lns8")
    optimizer = create_optimizer(model, "integer_madam", 0.02)
    optimizer.measure_next_step()
    loss_of(model).backward()
    optimizer.step()
    metrics = optimizer.take_measurement()
    assert metrics is not None
    assert 0.005 < metrics["relative_update/matrix"] < 0.05
    assert 0 < metrics["changed_entries"] < 1


def test_what_is_at_the_ends_of_the_range_is_told():
    rows = torch.full((4, 10), 0.1)
    rows[0, :3], rows[1, :2] = 1e-6, 0.0
    param = nn.Parameter(LNSTensor.from_float(rows, FORM, headroom=0.0))
    optimizer = IntegerMadam([param], lr=1e-6)
    param.grad = torch.ones(4, 10)
    optimizer.measure_next_step()
    optimizer.step()
    metrics = optimizer.take_measurement()
    assert metrics["at_bound"] == pytest.approx(35 / 40)
    assert metrics["at_smallest_level"] == pytest.approx(3 / 40)
    assert metrics["at_zero"] == pytest.approx(2 / 40)


def test_the_plan_says_who_is_in_codes():
    model = gpt2()
    convert(model, "lns12", skip="embedding")
    text = str(create_optimizer(model, "integer_madam", 0.02))
    assert "integer_madam, lns12" in text
    assert "madam, from zero by min_scale" in text
