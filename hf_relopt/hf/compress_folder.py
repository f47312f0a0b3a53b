"""What `hf-relopt compress` does: a model of the hub or a folder, written to a folder in codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import has_file
from transformers.utils import logging as transformers_logging

from hf_relopt.distance.files import ADAPTER
from hf_relopt.errors import ConfigError, FormatError, RelOptError, one_line
from hf_relopt.hf.coding_error import CodingError, coding_error, stored_bytes, together
from hf_relopt.hf.compression import compress
from hf_relopt.hf.data_quality import Quality, measured, quality_on
from hf_relopt.hf.distance_batch import TOKENIZERS
from hf_relopt.hf.lns_config import METHOD
from hf_relopt.hf.whole_folder import whole_folder
from hf_relopt.lns.format import LNSFormat, format_of
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.nn.compression import to_convert

Tell = Callable[[str], None]
# Files by which it is known that there is a processor of images, sound or several kinds.
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class QualityChange:
    """What was measured on a file.

    Attributes:
        metric: perplexity or accuracy.
        on: what it was measured on, in words.
        before: of the numbers.
        after: of the codes, as they are read from the new folder.
    """

    metric: str
    on: str
    before: float
    after: float


@dataclass(frozen=True)
class CompressedFolder:
    """A folder that was written, and what its weights lost.

    Attributes:
        source: the model, as it was named.
        out: the folder.
        kind: the model's class.
        form: the format.
        before: bytes of all weights as numbers.
        after: bytes of all weights as they are now.
        files: bytes of the files with weights, by name.
        errors: of each weight in codes, in the model's order.
        quality: what was measured on a file, if one was given.
        notes: what the folder lacks, or has too much.
    """

    source: str
    out: Path
    kind: str
    form: LNSFormat
    before: int
    after: int
    files: dict[str, int]
    errors: tuple[CodingError, ...]
    quality: QualityChange | None
    notes: tuple[str, ...]

    @property
    def total(self) -> CodingError:
        """Of all weights in codes as if they were one."""
        return together(self.errors)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "source": self.source,
            "out": str(self.out),
            "class": self.kind,
            "format": self.form.name,
            "bytes_before": self.before,
            "bytes_after": self.after,
            "files": self.files,
            "total": {k: v for k, v in self.total.to_dict().items() if k not in ("name", "shape")},
            "quality": None if self.quality is None else vars(self.quality),
            "notes": list(self.notes),
            "weights": [each.to_dict() for each in self.errors],
        }


class _Source(NamedTuple):
    """A model that is to be loaded: ``name`` and ``where`` are what from_pretrained takes."""

    name: str
    where: dict[str, str]
    config: Any
    kind: Any
    processors: tuple[Any, ...]
    tokenizer: Any


def compress_folder(
    source: str,
    out: Path,
    format: str | LNSFormat = "lns8",
    *,
    skip: Iterable[str] = (),
    data: Path | None = None,
    tell: Tell = lambda _: None,
) -> CompressedFolder:
    """Write a model in codes to a new folder, which is read back to see what it has lost.

    Args:
        source: a folder, or a model of the hub (NAME or NAME@REVISION).
        out: a folder that is not there yet, or is empty.
        format: see ``hf_relopt.compress``.
        skip: see ``hf_relopt.compress``.
        data: a text or a .tsv to measure the model on, before and after.
        tell: called with what is done next.

    Raises:
        ConfigError: a mistake in the arguments, a model in codes, weights that are not finite.
        FormatError: a model or a file that cannot be read, or a folder that cannot be written.
    """
    form, skip = format_of(format), list(skip)
    if data is not None and not data.is_file():
        raise ConfigError(f"--data {data} is no file. Pass a text, or a .tsv.")
    with whole_folder(out) as place, _quiet():
        tell("reading the configuration")
        opened = _opened(source)
        kind = opened.kind.__name__
        quality = None if data is None else quality_on(data, kind, opened.config, opened.tokenizer)
        tell("reading the weights")
        model, notes = _loaded(opened, source)
        kind = type(model).__name__
        before = dict(model.named_parameters())
        _require_finite(to_convert(model, skip), source)
        first = _told(tell, quality, model, data, "before")
        tell(f"encoding in {form.name}")
        codes = _names_in_codes(compress(model, form, skip=skip))
        tell(f"writing {out}")
        _write(opened, model, place)
        del model
        again = _read_back(opened, place)
        tell("comparing")
        errors = tuple(_compared(before, dict(again.named_parameters()), codes))
        change = None
        if quality is not None:
            last = _told(tell, quality, again, data, "after")
            change = QualityChange(quality.metric, quality.on, first, last)
        files = {each.name: each.stat().st_size for each in sorted(place.glob("*.safetensors"))}
    sizes = stored_bytes(before.values()), stored_bytes(again.parameters())
    return CompressedFolder(source, out, kind, form, *sizes, files, errors, change, tuple(notes))


def _opened(source: str) -> _Source:
    """What is known of a model before its weights are read."""
    name, where = _named(source)
    try:
        if has_file(name, ADAPTER, **where):
            raise ConfigError(
                f"{source} holds an adapter of PEFT. Merge it into its base first, by "
                "merge_and_unload, and pass what save_pretrained writes then."
            )
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        _require_numbers(config, source)
        kind = _kind(config, source)
        found = [
            _processor(each, name, where, source)
            for files, each in (
                (TOKENIZERS, transformers.AutoTokenizer),
                (PROCESSORS, transformers.AutoProcessor),
            )
            # Without their files Transformers makes some of the configuration alone.
            if any(has_file(name, file, **where) for file in files)
        ]
    except RelOptError:
        raise
    except Exception as error:  # whatever a damaged folder, or the hub, comes to
        raise _unreadable(source, error) from error
    tokens = next((each for each in found if hasattr(each, "convert_ids_to_tokens")), None)
    return _Source(name, where, config, kind, tuple(found), tokens)


def _named(source: str) -> tuple[str, dict[str, str]]:
    path = Path(source).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", ADAPTER)):
            raise FormatError(
                f"{source} holds no model: it has no config.json. Pass a folder that "
                "save_pretrained has written, or a model of the hub."
            )
        return str(path), {}
    if path.is_file():
        raise ConfigError(f"{source} is a file. Pass the folder that it is in, with a config.json.")
    name, _, revision = source.partition("@")
    if path.is_absolute() or source.startswith((".", "~")) or name.count("/") > 1:
        raise FormatError(f"{source} does not exist. Pass a folder, or a model of the hub.")
    return name, {"revision": revision} if revision else {}


def _kind(config: Any, source: str) -> Any:
    """The class that a configuration names."""
    names = config.architectures or ()
    if not names:
        return transformers.AutoModel
    kind = getattr(transformers, names[0], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ConfigError(
            f"{source} is a {names[0]}, which transformers {transformers.__version__} has not, or "
            "not without more packages. Load it in Python, then call hf_relopt.compress(model) and "
            "model.save_pretrained(folder)."
        )
    return kind


def _processor(auto: Any, name: str, where: Mapping[str, str], source: str) -> Any:
    """A tokenizer, or what prepares images or sound."""
    try:
        return auto.from_pretrained(name, trust_remote_code=False, **where)
    except Exception as error:  # damaged files, and packages that it needs
        kind = auto.__name__.removeprefix("Auto").lower()
        raise FormatError(
            f"The {kind} of {source} cannot be loaded: {one_line(error)}. Put it right, or remove "
            "its files from a copy of the folder to go without."
        ) from error


def _require_numbers(config: Any, source: str) -> None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    facts = found if isinstance(found, dict) else found.to_dict()
    method = facts.get("quant_method")
    if method == METHOD:
        raise ConfigError(
            f"{source} is stored in {facts.get('format')} already, and would lose once more. Pass "
            "the model that it was made from."
        )
    raise ConfigError(
        f"{source} is quantized by {method}. Pass the model that it was made from: codes are made "
        "of numbers."
    )


def _loaded(opened: _Source, source: str) -> tuple[Any, list[str]]:
    """The model, and what its files lack or have too much."""
    try:
        model, info = opened.kind.from_pretrained(
            opened.name, dtype="auto", output_loading_info=True, **opened.where
        )
    except RelOptError:
        raise
    except Exception as error:  # damaged files in many ways
        raise _unreadable(source, error) from error
    notes = []
    for key, words in (
        ("missing_keys", "not in the files of {0}, and new in the folder, untrained"),
        ("unexpected_keys", "in the files of {0}, and not in a {1}, so that it is left out"),
    ):
        if names := sorted(info.get(key) or ()):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            notes.append(f"{names[0]}{more}: {words.format(source, type(model).__name__)}.")
    return model, notes


def _require_finite(weights: Mapping[str, Tensor], source: str) -> None:
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise ConfigError(
                f"{name} of {source} has entries that are NaN or infinite, which no logarithmic "
                "format stores. Pass a checkpoint from before the step in which they came."
            )


def _told(
    tell: Tell, quality: Quality | None, model: nn.Module, file: Path | None, when: str
) -> float:
    if quality is None or file is None:
        return 0.0
    tell(f"measuring {quality.metric} on {quality.on}, {when}")
    return measured(quality, model, file)


def _names_in_codes(model: nn.Module) -> set[str]:
    return {name for name, param in model.named_parameters() if isinstance(param, LNSTensor)}


def _write(opened: _Source, model: Any, place: Path) -> None:
    try:
        model.save_pretrained(place)
        for each in opened.processors:
            each.save_pretrained(place)
    except RelOptError:
        raise
    except Exception as error:  # a full disk, or a model that is saved in another form
        raise FormatError(
            f"A {type(model).__name__} in codes cannot be written: {one_line(error)}. No folder is "
            "left. --skip PATTERN leaves weights as numbers that cannot be saved as codes."
        ) from error


def _read_back(opened: _Source, place: Path) -> Any:
    try:
        return opened.kind.from_pretrained(place, dtype="auto")
    except Exception as error:
        raise _lost(f"it cannot be loaded: {one_line(error)}") from error


def _compared(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], codes: set[str]
) -> Iterator[CodingError]:
    """The error of each weight in codes; all others have to be as they were."""
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.shape != old.shape or new.dtype != old.dtype:
            raise _lost(f"{name} is not there as it was")
        if isinstance(new, LNSTensor) and name in codes:
            yield coding_error(name, old, new)
        # Bytes, since NaN in a bias is not equal to itself.
        elif name in codes or not torch.equal(_bytes(old), _bytes(new)):
            raise _lost(f"{name} is not there as it was")


def _bytes(param: Tensor) -> Tensor:
    return param.detach().contiguous().view(-1).view(torch.uint8)


def _lost(what: str) -> FormatError:
    return FormatError(
        f"What was written does not come back: {what}. No folder is left. Please report this with "
        "the name of the model; --skip leaves weights as they are."
    )


def _unreadable(source: str, error: BaseException) -> FormatError:
    return FormatError(
        f"{source} cannot be loaded as a model: {one_line(error)}. Pass a folder that "
        "save_pretrained has written, or a model of the hub."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' bars and remarks: what matters of them is in the notes."""
    level, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
