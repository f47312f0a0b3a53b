"""Networks and batches for `hf-relopt distance --batch`: loaded as folders say, or refused."""

from __future__ import annotations

import builtins
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import BertModel, GPT2LMHeadModel

from hf_relopt.errors import ConfigError, FormatError
from hf_relopt.hf.distance_batch import MAX_LINES, load_network, read_batch
from tests.distance.nets import MINILM, gpt2

TOKENS = torch.arange(12).view(2, 6)


@pytest.fixture
def folder(tmp_path):
    gpt2().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_network_has_the_class_that_its_folder_names(folder):
    assert type(load_network(str(folder))) is GPT2LMHeadModel
    assert type(load_network(str(MINILM))) is BertModel


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
def test_an_adapter_is_loaded_on_its_base(folder, tmp_path):
    config = LoraConfig(target_modules=["c_fc"], init_lora_weights=False, fan_in_fan_out=True)
    model = get_peft_model(GPT2LMHeadModel.from_pretrained(folder), config)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_network(str(tmp_path / "adapter"))
    model.eval(), loaded.eval()
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits)


def test_an_adapter_without_peft_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    real = builtins.__import__

    def without_peft(name, *given, **named):
        if name == "peft":
            raise ImportError(name)
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ConfigError, match="pip install peft"):
        load_network(str(tmp_path))


def test_what_cannot_run_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="is a file of weights alone"):
        load_network(str(folder / "model.safetensors"))
    with pytest.raises(FormatError, match="cannot be loaded as a network"):
        load_network(str(tmp_path))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tensors_by_name(tmp_path, suffix):
    path = tmp_path / f"batch{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save({"input_ids": TOKENS}, path)
    assert torch.equal(read_batch(str(path), gpt2(), [])["input_ids"], TOKENS)


def test_lines_of_a_text_by_the_tokenizer_of_the_first_folder_that_has_one(folder, tmp_path):
    network = load_network(str(MINILM))
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(["A first line.", "", *["Another line of some words."] * 99]))
    batch = read_batch(str(path), network, [str(folder), str(MINILM)])
    assert batch["input_ids"].shape[0] == MAX_LINES and "labels" not in batch
    (tmp_path / "lines.jsonl").write_text(
        "\n".join(json.dumps({"id": 3, "text": words}) for words in ("one", "two"))
    )
    batch = read_batch(str(tmp_path / "lines.jsonl"), network, [str(MINILM)])
    assert batch["input_ids"].tolist() == [[101, 2028, 102], [101, 2048, 102]]


def test_a_language_model_gets_labels_and_padding_has_none(tmp_path):
    (tmp_path / "lines.txt").write_text("one\none two three\n")
    batch = read_batch(str(tmp_path / "lines.txt"), gpt2(), [str(MINILM)])
    assert batch["labels"].tolist()[0][-2:] == [-100, -100]
    assert batch["labels"].tolist()[1] == batch["input_ids"].tolist()[1]
    # No longer than the network's 16 positions.
    (tmp_path / "lines.txt").write_text("word " * 100)
    assert read_batch(str(tmp_path / "lines.txt"), gpt2(), [str(MINILM)])["input_ids"].size(1) == 16


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("x.txt", None, FormatError, "is no file"),
        ("x.txt", b"\n \n", ConfigError, "is empty"),
        ("x.txt", b"\xff\xfe\x00", FormatError, "cannot be read as a text"),
        ("x.jsonl", b"{not json", FormatError, "a line that is not JSON"),
        ("x.jsonl", b'{"id": 3}', FormatError, "a line without a text"),
        ("x.pt", b"text", FormatError, "cannot be read"),
        ("x.safetensors", b"text", FormatError, "cannot be read"),
    ],
)
def test_bad_files(tmp_path, name, content, error, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words):
        read_batch(str(tmp_path / name), gpt2(), [str(MINILM)])


def test_a_file_of_torch_without_names_is_refused(tmp_path):
    torch.save(TOKENS, tmp_path / "x.pt")
    with pytest.raises(FormatError, match="holds no tensors by name"):
        read_batch(str(tmp_path / "x.pt"), gpt2(), [])


def test_a_text_needs_a_tokenizer(folder, tmp_path):
    (tmp_path / "x.txt").write_text("one line")
    with pytest.raises(ConfigError, match="there is no tokenizer in"):
        read_batch(str(tmp_path / "x.txt"), gpt2(), [str(folder)])
