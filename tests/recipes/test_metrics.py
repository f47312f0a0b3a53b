"""The metric modules load offline and agree with a direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from training_session import load_metric
from transformers import TrainingArguments


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    return TrainingArguments(output_dir=str(tmp_path_factory.mktemp("args")), use_cpu=True)


def test_perplexity_is_exp_of_the_mean_loss(args):
    log_probabilities = -np.random.default_rng(0).gamma(2.0, 1.5, size=1000).astype(np.float32)
    found = load_metric("token_perplexity", args).compute(predictions=log_probabilities)
    mean = -log_probabilities.astype(np.float64).mean()
    assert found["tokens"] == 1000
    assert found["mean_loss"] == pytest.approx(mean, rel=1e-9)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-9)


def test_perplexity_of_an_even_choice_is_its_size(args):
    found = load_metric("token_perplexity", args).compute(predictions=[-math.log(50)] * 7)
    assert found["perplexity"] == pytest.approx(50, rel=1e-6)


def test_hopeless_model_has_infinite_perplexity_not_an_error(args):
    found = load_metric("token_perplexity", args).compute(predictions=[-1e4])
    assert found["perplexity"] == math.inf


@pytest.mark.parametrize("classes", [2, 5])
def test_accuracy_and_f1_agree_with_scikit_learn(args, classes):
    random = np.random.default_rng(classes)
    truth = random.integers(classes, size=200)
    guess = np.where(random.random(200) < 0.6, truth, random.integers(classes, size=200))
    found = load_metric("accuracy_and_f1", args).compute(predictions=guess, references=truth)
    average = "binary" if classes == 2 else "macro"
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, guess))
    assert found["f1"] == pytest.approx(f1_score(truth, guess, average=average))


def test_f1_of_a_class_that_is_never_right_is_zero(args):
    found = load_metric("accuracy_and_f1", args).compute(predictions=[0, 0], references=[1, 0])
    assert found == {"accuracy": 0.5, "f1": 0.0}
