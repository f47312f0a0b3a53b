"""Models of another kind than a recipe trains are refused before anything is written."""

from __future__ import annotations

import copy

import finetune_classifier
import finetune_squad
import pretrain_clm
import pytest
import sft_chat
import torch
import transformers
from model_loading import CAUSAL, require_causal, require_class
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_relopt.errors import ConfigError
from tests.recipes.recipe_calls import as_arguments, refusal, tiny_finetuning, tiny_pretraining

SMALL = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 24, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "embedding_size": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "n_layer": 1, "n_head": 2,
    "n_embd": 16, "n_positions": 32, "d_model": 16, "d_inner": 24, "ffn_dim": 24,
    "word_embed_proj_dim": 16, "state_size": 4, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip


def small(model_type: str, **more: object):
    config = AutoConfig.for_model(model_type)
    for name, value in {**SMALL, **more}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "bloom", "mistral", "gpt_neox", "mamba"])
def test_causal_models_pass_and_stay_as_they_were(kind):
    model = small(kind).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    require_causal(model, kind)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "xlm", "camembert", "rembert"])
def test_encoders_see_later_tokens(kind):
    with pytest.raises(ConfigError, match="is not a causal language model") as error:
        require_causal(small(kind), kind)
    assert "\n" not in str(error.value)


def test_a_bert_that_is_made_a_decoder_is_one():
    require_causal(small("bert", is_decoder=True), "bert")


@pytest.mark.parametrize("kind", ["t5", "bart", "marian", "pegasus", "vit", "clip"])
def test_encoder_decoders_and_pictures_have_no_class(kind):
    with pytest.raises(ConfigError, match=f"of type {kind}, which cannot be trained as a causal"):
        require_class(AutoConfig.for_model(kind), kind, CAUSAL)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model_type": "bert", "config_overrides": "hidden_size=16,num_attention_heads=2,"
          "num_hidden_layers=1,intermediate_size=16"}, "not a causal language model"),
        ({"model_type": "t5", "config_overrides": None}, "encoder-decoder of type t5"),
        ({"model_type": "vit", "config_overrides": None}, "a model of type vit"),
        ({"model_name_or_path": "{}", "config_overrides": None, "vocab_size": None},
         "not a causal language model"),
        ({"config_name": "{}", "config_overrides": None, "vocab_size": None},
         "not a causal language model"),
    ],
)  # fmt: skip
def test_pretraining_refuses_by_name_shape_and_type(
    flags, words, tiny_text, tiny_classifier, tmp_path, capsys
):
    said = {k: str(v).format(tiny_classifier) if v else v for k, v in flags.items()}
    arguments = tiny_pretraining(tiny_text, tmp_path / "run", **said)
    assert words in refusal(pretrain_clm.main, arguments, capsys)


def test_a_bert_as_a_decoder_trains(tiny_text, tmp_path):
    shape = "is_decoder=true,hidden_size=16,num_attention_heads=2,num_hidden_layers=1"
    arguments = tiny_pretraining(
        tiny_text, tmp_path / "run", model_type="bert",
        config_overrides=f"{shape},intermediate_size=16",
    )  # fmt: skip
    pretrain_clm.main(arguments)
    assert (tmp_path / "run" / "README.md").is_file()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A model of images, with a tokenizer beside it as some have."""
    folder = tmp_path_factory.mktemp("vit")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.ViTConfig(**size, intermediate_size=8, image_size=8, patch_size=4)
    transformers.ViTModel(config).save_pretrained(folder)
    return folder


def test_the_other_recipes_refuse_a_model_of_images(pictures, tiny_table, tmp_path, capsys):
    arguments = tiny_finetuning(tiny_table, pictures, tmp_path / "run")
    message = refusal(finetune_classifier.main, arguments, capsys)
    assert "type vit, which cannot be trained as a classifier" in message
    answers = tmp_path / "a.jsonl"
    answers.write_text('{"context": "a b", "question": "c", "answers": {}}\n' * 4)
    words = {"train_file": answers, "model_name_or_path": pictures, "output_dir": tmp_path / "run"}
    message = refusal(finetune_squad.main, as_arguments(words), capsys)
    assert "type vit, which cannot be trained as a question answerer" in message


# TRL's own default for gradient_checkpointing is not None.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_a_chat_is_not_for_an_encoder(tiny_classifier, tmp_path, capsys):
    table = tmp_path / "t.jsonl"
    table.write_text('{"prompt": "a", "completion": " b"}\n' * 4)
    words = {"train_file": table, "model_name_or_path": tiny_classifier, "use_cpu": True,
             "output_dir": tmp_path / "run", "bf16": False}  # fmt: skip
    message = refusal(sft_chat.main, as_arguments(words), capsys)
    assert "not a causal language model" in message


def test_a_tokenizer_of_another_model_is_told(tiny_table, tiny_classifier, tmp_path, capsys):
    more = AutoTokenizer.from_pretrained(tiny_classifier)
    more.add_tokens([f"<{number}>" for number in range(50)])
    more.save_pretrained(tmp_path / "more")
    arguments = tiny_finetuning(
        tiny_table, tiny_classifier, tmp_path / "run", tokenizer_name=tmp_path / "more"
    )
    message = refusal(finetune_classifier.main, arguments, capsys)
    assert "do not belong together" in message


def test_a_text_longer_than_the_model_takes_is_told_before_training(
    tiny_classifier, tmp_path, capsys
):
    table = tmp_path / "long.tsv"
    rows = [f"{'word ' * 600}{n}\t{n % 2}" for n in range(8)]
    table.write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    arguments = tiny_finetuning(table, tiny_classifier, tmp_path / "run", max_length=2000)
    message = refusal(finetune_classifier.main, arguments, capsys)
    assert "cannot be trained on this data" in message
