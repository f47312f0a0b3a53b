"""Trainers are remembered: what each one's model looked like, and what it resumes from."""

from __future__ import annotations

from transformers import Trainer

from tests.hf.tiny import arguments, gpt2, pretrained, rows


def test_two_trainers_made_before_either_has_an_optimizer(tmp_path):
    args = arguments(tmp_path, optim="fromage")
    one = Trainer(gpt2(), args, train_dataset=rows())
    other = Trainer(pretrained(gpt2()), args, train_dataset=rows())
    for job, expected in ((one, 0.01), (other, 0.001), (one, 0.01)):
        job.optimizer = None
        job.create_optimizer()
        assert {group["lr"] for group in job.optimizer.param_groups} == {expected}
        assert args.learning_rate == expected


def test_making_an_optimizer_twice_for_one_model_is_making_the_same(tmp_path):
    """After the first training the model looks pretrained, but it is the same run's."""
    args = arguments(tmp_path, optim="fromage")
    job = Trainer(gpt2(), args, train_dataset=rows())
    job.train()
    job.optimizer = job.lr_scheduler = None
    job.create_optimizer()
    assert {group["lr"] for group in job.optimizer.param_groups} == {0.01}
