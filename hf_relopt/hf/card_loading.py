"""The code in a card that loads its model: for the task, for adapters, for other libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.models.auto import modeling_auto

from hf_relopt.hf.card_facts import CardFacts
from hf_relopt.hf.run_files import ADAPTER


class Task(NamedTuple):
    """A task of the hub, the class that loads its models, and what prepares their inputs."""

    name: str
    auto: str
    processor: str


# By transformers' own tables; the first that knows a class has it.
_TEXT, _IMAGE, _SOUND = "AutoTokenizer", "AutoImageProcessor", "AutoProcessor"
TASKS = {
    "CAUSAL_LM": Task("text-generation", "AutoModelForCausalLM", _TEXT),
    "SEQUENCE_CLASSIFICATION": Task(
        "text-classification", "AutoModelForSequenceClassification", _TEXT
    ),
    "QUESTION_ANSWERING": Task("question-answering", "AutoModelForQuestionAnswering", _TEXT),
    "TOKEN_CLASSIFICATION": Task("token-classification", "AutoModelForTokenClassification", _TEXT),
    "MASKED_LM": Task("fill-mask", "AutoModelForMaskedLM", _TEXT),
    "SEQ_TO_SEQ_CAUSAL_LM": Task("text2text-generation", "AutoModelForSeq2SeqLM", _TEXT),
    "MULTIPLE_CHOICE": Task("multiple-choice", "AutoModelForMultipleChoice", _TEXT),
    "IMAGE_CLASSIFICATION": Task("image-classification", "AutoModelForImageClassification", _IMAGE),
    "SEMANTIC_SEGMENTATION": Task("image-segmentation", "AutoModelForSemanticSegmentation", _IMAGE),
    "OBJECT_DETECTION": Task("object-detection", "AutoModelForObjectDetection", _IMAGE),
    "AUDIO_CLASSIFICATION": Task("audio-classification", "AutoModelForAudioClassification", _SOUND),
    "CTC": Task("automatic-speech-recognition", "AutoModelForCTC", _SOUND),
    "SPEECH_SEQ_2_SEQ": Task("automatic-speech-recognition", "AutoModelForSpeechSeq2Seq", _SOUND),
    "IMAGE_TEXT_TO_TEXT": Task("image-text-to-text", "AutoModelForImageTextToText", _SOUND),
}
_BODY = Task("feature-extraction", "AutoModel", _TEXT)
# PEFT's words for a task.
_OF_ADAPTER = {
    "CAUSAL_LM": "CAUSAL_LM", "SEQ_CLS": "SEQUENCE_CLASSIFICATION", "TOKEN_CLS":
    "TOKEN_CLASSIFICATION", "QUESTION_ANS": "QUESTION_ANSWERING", "SEQ_2_SEQ_LM":
    "SEQ_TO_SEQ_CAUSAL_LM",
}  # fmt: skip
_USES = {
    "text-generation": (
        'inputs = tokenizer("Once upon a time", return_tensors="pt")',
        "tokens = model.generate(**inputs, max_new_tokens=40)",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
    ),
    "text2text-generation": (
        'inputs = tokenizer("A text to read.", return_tensors="pt")',
        "tokens = model.generate(**inputs, max_new_tokens=40)",
        "print(tokenizer.decode(tokens[0], skip_special_tokens=True))",
    ),
    "text-classification": (
        'inputs = tokenizer("A text to classify.", return_tensors="pt")',
        "print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])",
    ),
    "token-classification": (
        'inputs = tokenizer("A text to tag.", return_tensors="pt")',
        "labels = model(**inputs).logits.argmax(-1)[0].tolist()",
        "print([model.config.id2label[label] for label in labels])",
    ),
    "question-answering": (
        'inputs = tokenizer("Who wrote it?", "Ada wrote it.", return_tensors="pt")',
        "outputs = model(**inputs)",
        "start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()",
        'print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))',
    ),
    "fill-mask": (
        'inputs = tokenizer(f"It is {tokenizer.mask_token}.", return_tensors="pt")',
        "best = model(**inputs).logits.argmax(-1)",
        'is_mask = inputs["input_ids"] == tokenizer.mask_token_id',
        "print(tokenizer.decode(best[is_mask]))",
    ),
    "feature-extraction": (
        'inputs = tokenizer("A text to embed.", return_tensors="pt")',
        "print(model(**inputs).last_hidden_state.shape)",
    ),
}


def task_of(model: Mapping[str, Any]) -> Task | None:
    """The task of a model by its class; None if transformers' tables do not know it."""
    name = model.get("class")
    for table, task in TASKS.items():
        if name in _names(table):
            return task
    return _BODY if name in _names("") else None


def _names(table: str) -> set[Any]:
    middle = f"_FOR_{table}" if table else ""
    found = getattr(modeling_auto, f"MODEL{middle}_MAPPING_NAMES", {})
    names: set[Any] = set()
    for value in found.values():
        names.update(value if isinstance(value, (tuple, list)) else (value,))
    return names


def known_model(facts: CardFacts) -> dict[str, Any]:
    """What is known of the model: the record, and where that is silent, its own configuration."""
    model = {name: value for name, value in facts.part("model").items() if value is not None}
    place = facts.weights or facts.folder
    if (adapter := _read(place / ADAPTER)) and not model.get("adapter"):
        kind = _OF_ADAPTER.get(str(adapter.get("task_type")), "")
        auto = TASKS[kind].auto if kind else "AutoModel"
        model |= {"adapter": [str(adapter.get("peft_type", "LORA"))], "auto": auto}
        model |= {"library": "peft"}
    config = _read(place / "config.json") or {}
    if not model.get("class") and isinstance(config.get("architectures"), list):
        model |= {"class": next(iter(config["architectures"]), None), "library": "transformers"}
    if (place / "modules.json").is_file():
        model["library"] = "sentence-transformers"
    return model


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def loading_code(facts: CardFacts) -> str:
    """Python code that loads the model from the hub, or from the folder if it is not there."""
    model, place = known_model(facts), where(facts)
    library, name = model.get("library"), model.get("class")
    if library == "sentence-transformers":
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{place}")\n'
            'print(model.encode(["A text to embed."]).shape)'
        )
    if library is None:
        return (
            "from safetensors.torch import load_file\n\n"
            f'weights = load_file("{place}/model.safetensors")\n'
            f"# Make the {name or 'model'} as its training script does, then:\n"
            "# model.load_state_dict(weights)"
        )
    task = task_of(model)
    auto = model.get("auto") or (task.auto if task else str(name))
    if model.get("adapter"):
        return _with_adapter(facts, model, auto, task, place)
    lines = [f'model = {auto}.from_pretrained("{place}")']
    home = "" if hasattr(transformers, auto) else f"# {auto} is a class of the training script."
    return _joined(facts, auto if not home else None, task, place, lines, home)


def _with_adapter(
    facts: CardFacts, model: Mapping[str, Any], auto: str, task: Task | None, place: str
) -> str:
    labels = model.get("labels")
    base = shown_base(facts) or "BASE"
    head = f", num_labels={labels}" if labels else ""
    lines = [
        f'base = {auto}.from_pretrained("{base}"{head})',
        f'model = PeftModel.from_pretrained(base, "{place}")',
    ]
    return "from peft import PeftModel\n" + _joined(facts, auto, task, place, lines, "")


def _joined(
    facts: CardFacts, auto: str | None, task: Task | None, place: str, lines: list[str], home: str
) -> str:
    processor = task.processor if task and facts.has_processor else None
    names = ", ".join(sorted(filter(None, (auto, processor))))
    word = "tokenizer" if processor == _TEXT else "processor"
    codes = facts.part("model").get("codes")
    found = [f"import hf_relopt  # knows weights in {codes}"] if codes else []
    found += [f"from transformers import {names}", ""] if names else []
    found += [home] if home else []
    found += [f'{word} = {processor}.from_pretrained("{place}")'] if processor else []
    uses = _USES.get(task.name, ()) if task and processor == _TEXT else ()
    return "\n".join([*found, *lines, *uses])


def where(facts: CardFacts) -> str:
    """The model's name on the hub, or its folder as it can be typed here."""
    return facts.told.repo or from_here(facts.weights or facts.folder)


def shown_base(facts: CardFacts) -> str | None:
    """The base model as code names it; of a folder elsewhere on this machine, the name alone."""
    base = facts.base
    return base if base is None or hub_name(facts) else from_here(Path(base))


def from_here(path: Path) -> str:
    """A path relative to the working directory if it is below it, else the last name in it."""
    place, here = path.expanduser().absolute(), Path.cwd()
    return place.relative_to(here).as_posix() if here in place.parents else place.name


def hub_name(facts: CardFacts) -> str | None:
    """The base model's name on the hub; None if it came from a folder."""
    base = facts.base
    is_local = facts.record.get("base_is_local") and base == facts.record.get("base_model")
    if base is None or is_local or Path(base).expanduser().exists():
        return None
    return base if is_repo_name(base) else None


def is_repo_name(name: str) -> bool:
    """Whether the hub takes a name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
