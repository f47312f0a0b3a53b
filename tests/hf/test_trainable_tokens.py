"""PEFT's trainable tokens: a few rows of an embedding, trained beside the frozen table."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from hf_relopt import create_optimizer, plan
from hf_relopt.optim.create import default_lr
from tests.frames import each_backend

peft = pytest.importorskip("peft")

# PEFT itself still asks for the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")

SYMBOLS, CONTEXT, NEW = 24, 12, 2
GPT2: dict[str, Any] = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
PRESETS = ("fromage_spectral", "fromage_momentum")


def _counting(generator: torch.Generator) -> torch.Tensor:
    """[16, CONTEXT + 1]: symbols that count up from anywhere."""
    start = torch.randint(SYMBOLS, (16, 1), generator=generator)
    return (start + torch.arange(CONTEXT + 1)) % SYMBOLS


def _loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[16, CONTEXT]: of each next symbol."""
    logits = model(input_ids=ids[:, :-1]).logits
    return cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def _trained(tied: bool) -> Any:
    logging.set_verbosity_error()
    torch.manual_seed(0)
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    size = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": CONTEXT}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": tied}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=SYMBOLS, **size, **off, **ends))
    optimizer, generator = torch.optim.AdamW(model.parameters(), 3e-3), torch.Generator()
    for _ in range(150):
        loss = _loss(model, _counting(generator)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.2
    model.resize_token_embeddings(SYMBOLS + NEW)
    return model


@pytest.fixture(scope="module")
def trained() -> Callable[[bool], Any]:
    """A copy of a trained model whose embedding has new rows, as resize_token_embeddings makes."""
    made = {tied: _trained(tied) for tied in (True, False)}
    return lambda tied: copy.deepcopy(made[tied])


def adapted(model: Any, kind: str, tokens: tuple[int, ...] = (SYMBOLS, SYMBOLS + 1)) -> Any:
    torch.manual_seed(0)
    indices = list(tokens)
    if kind == "LoRA":
        config = peft.LoraConfig(**GPT2, trainable_token_indices=indices)
        if not model.config.tie_word_embeddings:
            config.trainable_token_indices = {"wte": indices, "lm_head": indices}
    else:
        names = ["wte"] if model.config.tie_word_embeddings else ["wte", "lm_head"]
        config = peft.TrainableTokensConfig(token_indices=indices, target_modules=names)
    return peft.get_peft_model(model, config)


def delta_of(model: Any) -> tuple[str, torch.nn.Parameter]:
    found = {n: p for n, p in model.named_parameters() if ".trainable_tokens_delta." in n}
    return next(iter(found.items()))


def entry_of(model: Any, optim: str, lr: Any = None, **options: Any) -> Any:
    name, _ = delta_of(model)
    (entry,) = [e for e in plan(model, optim, lr, **options).entries if e.name == name]
    return entry


def _train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Train with the new tokens in place of symbols 0 and 1; their loss at the end."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator, seen = torch.Generator().manual_seed(1), []
    for step in range(steps):
        ids = _counting(generator)
        ids = torch.where(ids < NEW, ids + SYMBOLS, ids)
        losses = _loss(model, ids)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step >= 0.9 * steps:
            seen.append(losses.detach()[ids[:, 1:] >= SYMBOLS])
    return float(torch.cat(seen).mean())


@pytest.mark.parametrize(
    ("optim", "kind", "tied"),
    [
        ("fromage_spectral", "alone", True),
        ("fromage_spectral", "alone", False),
        ("fromage_spectral", "LoRA", True),
        ("fromage_momentum", "LoRA", False),
        ("muonh", "LoRA", True),
        ("adamh", "alone", False),
        ("fromage", "alone", True),
        ("fromage", "LoRA", True),
    ],
)
def test_new_tokens_are_learned_at_the_default_learning_rate(
    optim: str, kind: str, tied: bool, trained: Callable[[bool], Any]
) -> None:
    model = adapted(trained(tied), kind)
    lr, why = default_lr(model, optim)
    assert lr == 0.03 and "adapters to train" in why
    loss = _train(model, create_optimizer(model, optim), 200)
    assert loss < math.log(SYMBOLS + NEW) / 4


@pytest.mark.parametrize("kind", ["alone", "LoRA"])
@pytest.mark.parametrize("optim", [*PRESETS, "fromage", "madam"])
def test_the_table_says_how_long_their_rows_have_to_become(
    optim: str, kind: str, trained: Callable[[bool], Any]
) -> None:
    model = adapted(trained(True), kind)
    table = model.get_base_model().get_input_embeddings().weight
    entry = entry_of(model, optim)
    size = float(table.detach().square().mean().sqrt())
    assert float(entry.param.detach().square().mean().sqrt()) < 0.3 * size, "nothing is tested"
    assert entry.role == "vector"
    assert entry.options["lr"] == 0.03
    assert entry.options["min_scale"] == pytest.approx(size, rel=5e-3)
    assert entry.options.get("lr_factor") == (None if optim == "madam" else 3.0)


def test_what_is_asked_for_wins(trained: Callable[[bool], Any]) -> None:
    model, optim = adapted(trained(True), "LoRA"), "fromage_spectral"
    name = delta_of(model)[0]
    assert entry_of(model, optim, min_scale=0.5).options["min_scale"] == 0.5
    assert entry_of(model, optim, lr_factor=0.5).options["lr_factor"] == 0.5
    own = entry_of(model, optim, overrides={name: {"lr": 0.02}})
    assert own.options["lr"] == 0.02 and "lr_factor" not in own.options
    assert "lr_factor" not in entry_of(model, optim, 0.5).options
    by_adamw = entry_of(model, optim, overrides={name: {"rule": "adamw", "lr": 0.001}})
    assert by_adamw.options == {"rule": "adamw", "lr": 0.001}
    by_madam = entry_of(model, optim, overrides={name: {"rule": "madam", "lr": 0.1}})
    assert by_madam.options.keys() == {"rule", "lr", "min_scale"}


def test_a_table_without_weights_says_nothing(trained: Callable[[bool], Any]) -> None:
    model = adapted(trained(True), "alone").to("meta")
    assert "min_scale" not in entry_of(model, "fromage_spectral").options


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_step_by_the_size_of_the_table_and_rest_without_a_gradient(
    dtype: torch.dtype, backend: str, trained: Callable[[bool], Any]
) -> None:
    model = adapted(trained(True), "alone").to(dtype)
    optimizer = create_optimizer(model, "fromage_spectral", backend=backend)
    _, delta = delta_of(model)
    before = delta.detach().clone()
    delta.grad = torch.ones_like(delta)
    delta.grad[1] = 0.0
    optimizer.step()
    moved = (delta.detach() - before).float()
    size = entry_of(model, "fromage_spectral").options["min_scale"]
    # The first step along a new momentum's direction has entries of one.
    assert moved[0].neg().mean() == pytest.approx(3 * 0.03 * size, rel=0.02)
    assert not moved[1].any()


def test_a_checkpoint_resumes_bit_equal(trained: Callable[[bool], Any]) -> None:
    ends = []
    for stop in (False, True):
        model = adapted(trained(True), "LoRA")
        optimizer = create_optimizer(model, "fromage_spectral")
        generator = torch.Generator().manual_seed(2)
        for step in range(4):
            if stop and step == 2:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = create_optimizer(model, "fromage_spectral")
                optimizer.load_state_dict(saved)
            ids = _counting(generator)
            _loss(model, torch.where(ids < NEW, ids + SYMBOLS, ids)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(delta_of(model)[1].detach().clone())
    assert torch.equal(*ends)
