"""create_optimizer in a plain Accelerate loop: prepare, accumulation, bf16, and fp16's scaler."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_relopt import create_optimizer
from tests.hf.tiny import gpt2, rows


@pytest.fixture
def accelerator():
    """A factory; Accelerate keeps its state in class attributes, so they are cleared."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield lambda **given: Accelerator(cpu=True, **given)
    AcceleratorState._reset_state(reset_partial_state=True)


def ids(count: int = 8) -> torch.Tensor:
    return torch.stack([row["input_ids"] for row in rows(count)])


def loop(accelerator, optim, batches, dtype=torch.float32):
    """Train as Accelerate's guide says; returns the bare model, the optimizer and the losses."""
    model = gpt2().to(dtype)
    optimizer = create_optimizer(model, optim, 0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    losses = []
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(input_ids=batch, labels=batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return accelerator.unwrap_model(model), optimizer, losses


@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral"])
def test_prepared_loop_takes_the_bare_loop_s_steps(accelerator, optim):
    batches = [ids(8)] * 4
    prepared, optimizer, losses = loop(accelerator(), optim, batches)
    assert losses[-1] < losses[0]
    bare = gpt2()
    alone = create_optimizer(bare, optim, 0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(alone, 1.0, 0.0, total_iters=4)
    for batch in batches:
        bare(input_ids=batch, labels=batch).loss.backward()
        alone.step()
        schedule.step()
        alone.zero_grad()
    for ours, theirs in zip(prepared.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert optimizer.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("optim", ["fromage", "madam"])
def test_accumulation_steps_once_and_equals_the_large_batch(accelerator, optim):
    """The key biases' gradients are rounding noise, which a normalised rule blows up: left out."""
    halves = [ids(8)[:4], ids(8)[4:]]
    job = accelerator(gradient_accumulation_steps=2)
    parts, optimizer, _ = loop(job, optim, halves)
    assert {int(s["step"]) for s in optimizer.optimizer.state.values()} == {1}
    whole, _, _ = loop(accelerator(), optim, [ids(8)])
    for (name, ours), theirs in zip(parts.named_parameters(), whole.parameters(), strict=True):
        if "c_attn.bias" in name or (optim == "madam" and "bias" not in name):
            continue
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral"])
def test_bf16_mixed_precision_keeps_float32_weights_and_state(accelerator, optim):
    model, optimizer, losses = loop(accelerator(mixed_precision="bf16"), optim, [ids()] * 6)
    assert losses[-1] < losses[0]
    assert {param.dtype for param in model.parameters()} == {torch.float32}
    state = optimizer.optimizer.state.values()
    assert {value.dtype for entry in state for value in entry.values()} == {torch.float32}


def test_bf16_weights_train(accelerator):
    model, _, losses = loop(accelerator(), "fromage", [ids()] * 6, torch.bfloat16)
    assert losses[-1] < losses[0]
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral"])
def test_fp16_s_scaler_unscales_skips_and_goes_on(optim):
    """Accelerate has no fp16 on a CPU; the scaler it uses has one."""
    model = torch.nn.Linear(4, 4)
    optimizer = create_optimizer(model, optim, 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1000)
    plain = torch.nn.Linear(4, 4)
    plain.load_state_dict(model.state_dict())
    alone = create_optimizer(plain, optim, 0.05)

    def gradients(job, poisoned):
        for index, param in enumerate(job.parameters()):
            generator = torch.Generator().manual_seed(index)
            param.grad = torch.randn(param.shape, generator=generator)
        if poisoned:
            next(job.parameters()).grad[0, 0] = float("inf")

    for poisoned in (False, True, False):
        gradients(model, poisoned)
        for param in model.parameters():
            param.grad *= scaler.get_scale()
        scaler.scale(torch.zeros(()))  # as a loss would: the scale's tensor is made
        before = [param.detach().clone() for param in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        if poisoned:  # the scaler skips the whole step, so nothing here counts it
            assert all(map(torch.equal, before, model.parameters()))
            assert scaler.get_scale() == 2.0**19
        else:
            gradients(plain, False)
            alone.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert {int(s["step"]) for s in optimizer.state.values()} == {2}
    assert {int(s["skipped"]) for s in optimizer.state.values()} == {0}


@pytest.mark.parametrize("optim", ["madam", "fromage_spectral"])
def test_state_survives_accelerate_s_own_checkpoint(accelerator, optim, tmp_path):
    job = accelerator()
    loop(job, optim, [ids()] * 2)
    job.save_state(tmp_path / "state")
    (saved,) = job._optimizers
    before = [dict(state) for state in saved.optimizer.state.values()]
    again = accelerator()
    model = gpt2(seed=3)
    optimizer = create_optimizer(model, optim, 0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=2)
    _, optimizer, _ = again.prepare(model, optimizer, schedule)
    again.load_state(tmp_path / "state")
    for was, after in zip(before, optimizer.optimizer.state.values(), strict=True):
        assert set(was) == set(after)
        for name, value in was.items():
            assert torch.equal(value, after[name])
            assert value.dtype == after[name].dtype
