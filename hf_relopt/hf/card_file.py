"""README.md in a run's folder: whose it is, and how a card of ours gets there.

A card of ours ends in a comment with a checksum. One that was changed by hand no longer fits it,
and is left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_relopt.errors import one_line
from hf_relopt.whole_file import whole_file

CARD = "README.md"
_MARK = re.compile(r"\n<!-- hf_relopt card ([0-9a-f]{12}): [^\n]*-->\n?")
# What PEFT adds to any card that lies in the folder it saves an adapter to.
_OF_PEFT = re.compile(r"\n*### Framework versions\s*\n+- PEFT [^\n]*\n*$")
# What a person may add to the head of a card, and would miss.
_KEPT = ("license", "license_name", "license_link", "language", "datasets")


def marked(body: str) -> str:
    """The body of a card with its checksum."""
    body = body.strip("\n")
    return f"{body}\n\n<!-- hf_relopt card {_sum(body)}: a card that is changed is kept -->\n"


def _sum(body: str) -> str:
    return hashlib.sha256(" ".join(body.split()).encode()).hexdigest()[:12]


def is_ours(text: str) -> bool:
    """Whether a card is one of ours that nobody has changed; PEFT's additions do not count."""
    body = REGEX_YAML_BLOCK.sub("", text, count=1)
    found = _MARK.search(body)
    if found is None or _OF_PEFT.sub("", body[found.end() :]).strip():
        return False
    return _sum(body[: found.start()].strip("\n")) == found[1]


def is_template(text: str) -> bool:
    """Whether a card is the empty form that PEFT saves beside an adapter."""
    body = _OF_PEFT.sub("", REGEX_YAML_BLOCK.sub("", text, count=1))
    if "[More Information Needed]" not in body:
        return False
    form = ModelCard.from_template(ModelCardData()).text
    return " ".join(body.split()) == " ".join(_OF_PEFT.sub("", form).split())


def why_kept(path: Path) -> str | None:
    """Why a card must not be overwritten unasked; None if it may be, or is not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        return f"{path} cannot be read ({one_line(error)})"
    if is_ours(text) or is_template(text) or not text.strip():
        return None
    if _MARK.search(text):
        return f"{path} was changed by hand"
    return f"{path} was not written by hf_relopt"


def write_card(path: Path, text: str) -> None:
    """Write a card; it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def with_kept_words(data: ModelCardData, path: Path) -> ModelCardData:
    """Metadata, with what the card in its place has and it lacks: a license, say, typed by hand."""
    try:
        old = ModelCard.load(path, ignore_metadata_errors=True).data
    except Exception:  # no card, or one of any make
        return data
    for name in _KEPT:
        if data.get(name) is None and old.get(name) is not None:
            data[name] = old.get(name)
    return data


@contextmanager
def own_card_kept(folder: Path) -> Iterator[None]:
    """Put a card of ours back as it was, if it is changed within: PEFT rewrites its head."""
    path = folder / CARD
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        before = ""
    yield
    if before and is_ours(before) and path.read_text(encoding="utf-8") != before:
        write_card(path, before)
