"""The real trainer of sentence-transformers: its losses have weights of their own."""

from __future__ import annotations

import pytest
import torch

from hf_relopt.hf.callbacks import unwrapped
from tests.hf.tiny import VOCABULARY, arguments

pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT with a tokenizer of numbers."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("bert")
    words = Tokenizer(WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", model_max_length=8)
    tokenizer.save_pretrained(path)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"intermediate_size": 32, "max_position_embeddings": 16}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=VOCABULARY, **shape, **sizes)).save_pretrained(path)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # theirs
@pytest.mark.parametrize(
    ("optim", "mapping", "rates"),
    [
        ("fromage", {}, {"classifier": 0.01, "embeddings": 0.01}),
        ("fromage_spectral", {}, {"classifier": 0.04, "embeddings": 0.1}),
        ("madam", {"classifier": 0.03}, {"classifier": 0.03, "embeddings": 0.01}),
    ],
)
def test_model_and_loss_are_trained(optim, mapping, rates, folder, tmp_path, said):
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import SoftmaxLoss

    from hf_relopt.plans.plan import followed_lr

    model = SentenceTransformer(str(folder), device="cpu")
    loss = SoftmaxLoss(model, 16, num_labels=2)
    left, right = [[f"{n} {n + k} {2 * n}" for n in range(16)] for k in (1, 2)]
    data = Dataset.from_dict({"a": left, "b": right, "label": [0, 1] * 8})
    kind = SentenceTransformerTrainingArguments
    args = arguments(tmp_path, kind, optim=optim, learning_rate_mapping=mapping)
    job = SentenceTransformerTrainer(model, args, train_dataset=data, loss=loss)
    before = {name: param.detach().clone() for name, param in loss.named_parameters()}
    job.train()
    same = [name for name, p in loss.named_parameters() if torch.equal(before[name], p)]
    assert same == [name for name in before if "pooler" in name]  # which the loss does not use
    groups = unwrapped(job.optimizer).param_groups
    found = {name: group for group in groups for name in group["param_names"]}
    assert {followed_lr(found["classifier.weight"])} == {rates["classifier"]}
    (table,) = [name for name in found if name.endswith("word_embeddings.weight")]
    assert (followed_lr(found[table]), found[table]["role"]) == (rates["embeddings"], "embedding")
    assert set(found) == set(before)
    assert said.about("looks untrained")
