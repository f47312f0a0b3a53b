"""A short run of a tiny model, for a card."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from hf_relopt import RelOptTrainer


def trained(output_dir, **arguments) -> RelOptTrainer:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip
    model.loss_type = "ForCausalLM"
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(16, (6, 8))]
    trainer = RelOptTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output_dir), max_steps=2, per_device_train_batch_size=3, use_cpu=True,
            save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True, **arguments,
        ),
        train_dataset=rows,
        eval_dataset=rows,
    )  # fmt: skip
    trainer.train()
    return trainer
