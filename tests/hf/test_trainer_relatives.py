"""Trainer's relatives and other ways in: model_init, trials, Seq2SeqTrainer, TRL's SFTTrainer."""

from __future__ import annotations

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_relopt import Fromage, RelOptMixin, RelOptTrainer
from hf_relopt.hf.callbacks import unwrapped
from tests.hf.tiny import FIGURES, VOCABULARY, arguments, gpt2, rows, same, weights


def test_model_init_gives_each_training_a_fresh_model_and_optimizer(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    job = RelOptTrainer(args=args, model_init=lambda: gpt2(), train_dataset=rows())
    ends, optimizers = [], []
    for _ in range(2):
        job.train()
        ends.append(weights(job.model))
        optimizers.append(unwrapped(job.optimizer))
    assert same(*ends)
    assert optimizers[0] is not optimizers[1]
    assert {int(s["step"]) for s in optimizers[1].state.values()} == {4}
    assert args.learning_rate == 0.01


def test_trial_of_a_hyperparameter_search_sets_the_rate(tmp_path):
    """What the search backends do with a Trainer, without one of them installed."""
    from transformers.trainer_utils import HPSearchBackend

    args = arguments(tmp_path, optim="fromage", eval_strategy="no")
    job = RelOptTrainer(args=args, model_init=lambda: gpt2(), train_dataset=rows())
    job.hp_search_backend = HPSearchBackend.WANDB  # the one whose trial is a plain dict
    for lr in (0.02, 0.04):
        job._hp_search_setup({"learning_rate": lr})
        job.train(resume_from_checkpoint=None, trial=None)
        (initial,) = {g["initial_lr"] for g in unwrapped(job.optimizer).param_groups}
        assert initial == lr


def test_mixin_makes_a_seq2seq_trainer(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    class Job(RelOptMixin, Seq2SeqTrainer):
        pass

    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    ends = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    model = T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **shape, **ends))
    args = arguments(
        tmp_path,
        Seq2SeqTrainingArguments,
        optim="fromage",
        predict_with_generate=True,
        generation_max_length=4,
    )
    job = Job(model, args, train_dataset=rows(), eval_dataset=rows(4))
    job.train()
    assert args.learning_rate == 0.01
    assert set(job.state.log_history[0]) >= FIGURES
    assert job.predict(rows(4)).predictions.shape[0] == 4


def sft(folder, trainer, **given):
    """A tiny SFTTrainer on token ids, so that no tokenizer is needed, and its arguments."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig

    words = Tokenizer(WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0")
    args = arguments(folder, SFTConfig, optim="fromage", bf16=False, max_length=8, **given)
    data = Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in rows()])
    job = trainer(gpt2(), args, train_dataset=data, processing_class=tokenizer)
    job.train()
    return job, args


# SFTConfig's default for gradient_checkpointing is not None: TRL's own.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_sft_trainer_with_and_without_the_mixin(tmp_path, said):
    from trl import SFTTrainer

    class Job(RelOptMixin, SFTTrainer):
        pass

    for trainer in (SFTTrainer, Job):
        said.lines.clear()
        job, args = sft(tmp_path, trainer)
        assert type(unwrapped(job.optimizer)) is Fromage
        # SFTConfig's own default is 2e-5, and it is told from one that was given.
        assert args.learning_rate == 0.01
        (line,) = said.about("learning rate")
        assert "since none was given" in line
        assert (trainer is Job) == (set(job.state.log_history[0]) >= FIGURES)
    _, args = sft(tmp_path, Job, learning_rate=5e-5)
    assert args.learning_rate == 5e-5
