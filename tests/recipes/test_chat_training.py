"""sft_chat.py trains: two real steps of TRL's SFTTrainer on a tiny chat model, with LoRA too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from run_folder import RunFolder
from transformers import AutoModelForCausalLM

from hf_relopt import LNSConfig
from hf_relopt.lns.tensor import LNSTensor
from tests.distributed.ranks import forked
from tests.recipes.recipe_calls import RECIPES, refusal, tiny_finetuning, write_rows

pytest.importorskip("trl")
from sft_chat import main

# SFTConfig's default for gradient_checkpointing is not None: TRL's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    # PEFT and TRL still use the older name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    # GPT-2 has Conv1D where others have Linear; PEFT sets its option right and says so.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    """A saved GPT-2 of one layer with a tokenizer that has a chat template."""
    import torch
    from causal_text import learn_tokenizer
    from datasets import Dataset
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("chat")
    texts = Dataset.from_dict({"text": tiny_text.read_text().splitlines()})
    tokenizer = learn_tokenizer(texts, 300)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(form: str) -> list[dict]:
    pairs = [(f"cat {number}?", f"grey cat {number % 5}.") for number in range(24)]
    if form == "text":
        return [{"text": f"{asked} {said}"} for asked, said in pairs]
    if form == "prompt":
        return [{"prompt": asked, "completion": f" {said}"} for asked, said in pairs]
    roles = ("user", "assistant")
    return [
        {"messages": [{"role": r, "content": c} for r, c in zip(roles, pair, strict=True)]}
        for pair in pairs
    ]


@pytest.fixture(scope="module", params=["messages", "prompt", "text"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(
        tmp_path_factory.mktemp("rows") / f"{request.param}.jsonl", rows(request.param)
    )


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "chats.jsonl", rows("messages"))


def tiny(data: Path, model: Path, output: Path, **more: object) -> list[str]:
    flags = {"max_length": 32, "bf16": False, "gradient_checkpointing": False, **more}
    return tiny_finetuning(data, model, output, **flags)


def test_weights_in_codes(
    table: Path, chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"optim": "integer_madam", "lns_format": "lns12"}
    main(tiny(table, chat_model, tmp_path / "run", **words))
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "run").get_input_embeddings().weight
    start = AutoModelForCausalLM.from_pretrained(chat_model, quantization_config=LNSConfig("lns12"))
    assert isinstance(moved, LNSTensor)
    assert not torch.equal(moved, start.get_input_embeddings().weight)
    assert "with LoRA" not in capsys.readouterr().out
    # Of what is in codes nothing has to be said, and adapters beside it are another's to step.
    again = tiny(table, tmp_path / "run", tmp_path / "more", optim="integer_madam")
    line = refusal(main, [*again, "--lora_rank", "2"], capsys)
    assert "Adapters stay numbers: pass --optim madam" in line
    line = refusal(main, [*again, "--lns_format", "lns8"], capsys)
    assert "stored in codes already. Leave --lns_format out" in line
    line = refusal(main, tiny(table, tmp_path / "run", tmp_path / "more", optim="sgd"), capsys)
    assert "is stored in codes, which sgd cannot step. Pass --optim integer_madam" in line
    assert not (tmp_path / "more").exists()
    main(again)
    assert "--optim fromage" not in capsys.readouterr().out


def test_two_real_steps_on_each_form_of_data(table: Path, chat_model: Path, tmp_path: Path) -> None:
    main(tiny(table, chat_model, tmp_path / "run"))
    record = RunFolder(tmp_path / "run").record
    assert record["finished"] and record["steps"] == 2
    assert record["after"]["eval_loss"] < record["before"]["eval_loss"]
    assert bool(record["sample"]) == (table.name != "text.jsonl")
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert "fromage" in card.content.lower()


def test_lora_trains_the_adapters_alone_and_resumes(
    chats: Path, chat_model: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    folder = tmp_path / "run"
    arguments = tiny(chats, chat_model, folder, lora_rank=2, optim="fromage")
    main(arguments)
    first = (folder / "adapter_model.safetensors").read_bytes()
    assert not (folder / "model.safetensors").exists()
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    moved = [p for n, p in loaded.named_parameters() if "lora_B" in n]
    assert moved and all(bool(p.abs().sum() > 0) for p in moved)
    record = json.loads((folder / "run.json").read_text())
    del record["finished"]
    (folder / "run.json").write_text(json.dumps(record))
    main(arguments)
    assert (folder / "adapter_model.safetensors").read_bytes() == first


@pytest.mark.dist
def test_two_processes(chats: Path, chat_model: Path, tmp_path: Path) -> None:
    done = forked(2, RECIPES / "sft_chat.py", *tiny(chats, chat_model, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "run").record["finished"]


def test_adapters_for_modules_that_are_not_there(chats, chat_model, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    flags = {"lora_rank": 2, "lora_target_modules": "nosuch"}
    arguments = tiny(chats, chat_model, tmp_path / "run", **flags)
    assert "--lora_target_modules" in refusal(main, arguments, capsys)
    assert not (tmp_path / "run").exists()


def test_conversations_need_a_template(chats, tiny_text, chat_model, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    import shutil

    plain = shutil.copytree(chat_model, tmp_path / "plain")
    for name in ("chat_template.jinja", "chat_template.json"):
        (plain / name).unlink(missing_ok=True)
    arguments = tiny(chats, plain, tmp_path / "run")
    assert "no chat template" in refusal(main, arguments, capsys)


def test_other_columns_are_named(chat_model, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = write_rows(tmp_path / "odd.jsonl", [{"body": f"b {n}"} for n in range(8)])
    assert "columns body" in refusal(main, tiny(path, chat_model, tmp_path / "run"), capsys)
