"""The head of a card: what the hub reads, checked as far as that goes without a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from hf_relopt.errors import ConfigError, one_line
from hf_relopt.hf.card_facts import CardFacts
from hf_relopt.hf.card_loading import hub_name, is_repo_name, known_model, task_of
from hf_relopt.hf.run_files import is_finite

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")


def metadata(facts: CardFacts) -> ModelCardData:
    """What the hub reads of a run.

    Raises:
        ConfigError: a license, language or data set that the hub would refuse.
    """
    told = facts.told
    _check(told.license, told.language, listed(told.dataset_tags))
    model = known_model(facts)
    task = next(iter(listed(told.tasks)), None)
    if task is None:
        found = task_of(model)
        task = found.name if found else None
    datasets = [name for name in listed(told.dataset_tags) if is_repo_name(name)]
    values = {name: value for name, value in facts.after.items() if is_result(value)}
    return ModelCardData(
        language=told.language,
        license=told.license or license_of_base(facts),
        library_name=model.get("library") or "transformers",
        pipeline_tag=task,
        tags=_tags(facts),
        base_model=hub_name(facts),
        datasets=datasets or None,
        metrics=[name for name in values if name != "loss"] or None,
        model_name=facts.name,
        eval_results=_results(facts, values, task, datasets) or None,
    )


def _results(
    facts: CardFacts, values: Mapping[str, float], task: str | None, datasets: list[str]
) -> list[EvalResult]:
    told = facts.told
    return [
        EvalResult(
            task_type=task or "other",
            dataset_type=datasets[0] if datasets else "local",
            dataset_name=in_words(told.dataset or told.dataset_tags) or "validation data",
            dataset_config=in_words(told.dataset_args) or None,
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in values.items()
    ]


def is_result(value: Any) -> bool:
    """Whether a metric is a result; counts, as of tokens, are none, and the hub takes no NaN."""
    return isinstance(value, float) and is_finite(value)


def _tags(facts: CardFacts) -> list[str]:
    optimizer = facts.part("optimizer")
    groups = optimizer.get("groups")
    rules = {
        str(group["rule"])
        for group in (groups if isinstance(groups, list) else [])
        if isinstance(group, dict) and group.get("rule") and group["rule"] != "adamw"
    }
    library = known_model(facts).get("library")
    own = ["generated_from_trainer", "hf_relopt", *sorted(rules)]
    own += ["peft"] if library == "peft" else []
    own += ["unfinished"] if facts.finished is False else []
    return list(dict.fromkeys([*own, *listed(facts.told.tags)]))


def license_of_base(facts: CardFacts) -> str | None:
    """The base model's license, if its own card lies on this machine."""
    base = facts.base
    if base is None:
        return None
    folder = Path(base).expanduser()
    try:
        file = folder / "README.md" if folder.is_dir() else _cached_card(base)
        found = ModelCard.load(file).data.get("license") if file else None
    except Exception:  # a card of any make: it is read for one word, and may lack it
        return None
    return found if isinstance(found, str) and _LICENSE.fullmatch(found) else None


def _cached_card(base: str) -> str | None:
    found = try_to_load_from_cache(base, "README.md") if is_repo_name(base) else None
    return found if isinstance(found, str) else None


def _check(license: str | None, language: Any, datasets: list[str]) -> None:
    if license is not None and not _LICENSE.fullmatch(license):
        raise ConfigError(
            f"license is {license!r}; the hub takes its own short names, as apache-2.0, mit, "
            "cc-by-sa-4.0 or other (https://huggingface.co/docs/hub/repositories-licenses)."
        )
    for code in listed(language):
        if not _LANGUAGE.fullmatch(code):
            raise ConfigError(f"language is {code!r}; the hub takes ISO 639 codes, as en or de.")


def check_card(text: str) -> ModelCard:
    """Read a card back as the hub's client does.

    Raises:
        ConfigError: it cannot be read back.
    """
    try:
        return ModelCard(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"the card's metadata is not valid: {one_line(error)}.") from error


def listed(value: str | Iterable[str] | None) -> list[str]:
    """One name or several, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def in_words(value: str | Iterable[str] | None) -> str:
    """One name or several, in one line."""
    return ", ".join(listed(value))
