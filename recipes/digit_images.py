"""Small pictures with classes: scikit-learn's digits, MNIST from files, a data set of the hub."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clear_messages import blamed_on
from local_files import check_is_there, looks_local
from torch import Tensor

from hf_relopt.errors import ConfigError

DIGITS = "digits"
# Of larger data sets the first so many are read.
MOST = 10_000
# How MNIST's own files are called, and the marks that they begin with.
IDX_FILES = (("train-images-idx3-ubyte", 0x0803), ("train-labels-idx1-ubyte", 0x0801))
# Names of the two arrays in a .npz file: Keras' MNIST, MedMNIST, and the plain ones.
NPZ_NAMES = (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels"))
REMEDY = f"Pass {DIGITS}, a folder with MNIST's files, a .npz or .parquet file, or a hub name."


@dataclass(frozen=True)
class Images:
    """Pictures as rows of numbers.

    Attributes:
        name: of the source, without its folder.
        pixels: float32 [pictures, side * side], with mean 0 and standard deviation 1 over all.
        labels: int64 [pictures], from 0.
    """

    name: str
    pixels: Tensor
    labels: Tensor

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.labels.max()) + 1

    @property
    def crc32(self) -> int:
        """Tells two data sets of one name apart."""
        return zlib.crc32(self.labels.numpy().tobytes(), zlib.crc32(self.pixels.numpy().tobytes()))


def read_images(source: str, side: int) -> Images:
    """Read pictures, and average them down to ``side`` x ``side``.

    Args:
        source: "digits"; a .npz or .parquet file; a folder with MNIST's idx files; a hub name.
        side: pixels per side.

    Raises:
        ConfigError: no such source, no pictures with classes in it, or smaller pictures.
    """
    pixels, labels = _arrays(source)
    if pixels.ndim == 4:  # colors
        pixels = pixels.mean(axis=-1)
    labels = labels.reshape(-1)
    if pixels.ndim != 3 or len(pixels) != len(labels) or not len(labels):
        raise ConfigError(
            f"{source} holds arrays of the shapes {list(pixels.shape)} and {list(labels.shape)}, "
            f"which are no pictures with one class each. {REMEDY}"
        )
    if labels.dtype.kind not in "iu" or int(labels.min()) < 0 or len(np.unique(labels)) < 2:
        raise ConfigError(
            f"the classes of {source} have to be whole numbers from 0, and two at least."
        )
    if min(pixels.shape[1:]) < side:
        raise ConfigError(
            f"the pictures of {source} have {pixels.shape[1]} x {pixels.shape[2]} pixels; --side "
            f"can be {min(pixels.shape[1:])} at most, not {side}."
        )
    values = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    values = torch.nn.functional.adaptive_avg_pool2d(values, side).flatten(1)
    spread = values.std()
    if not (spread > 0 and torch.isfinite(spread)):
        raise ConfigError(
            f"the pictures of {source} are blank, or hold numbers that are not finite."
        )
    values = (values - values.mean()) / spread
    return Images(Path(source).name, values, torch.from_numpy(labels.astype(np.int64)))


def _arrays(source: str) -> tuple[np.ndarray, np.ndarray]:
    if source == DIGITS:
        return _digits()
    path = Path(source).expanduser()
    if path.is_dir() and any(path.glob("*-ubyte*")):
        return _idx(path)
    if path.suffix == ".npz":
        check_is_there(path)
        return _npz(path)
    if path.suffix == ".parquet":
        check_is_there(path)
        return _table("parquet", data_files=str(path))
    if path.is_file() or (looks_local(source) and not path.is_dir()):
        raise ConfigError(
            f"--data is {source}, which {'is no' if path.exists() else 'does not exist as a'} file "
            f"of pictures. {REMEDY}"
        )
    return _table(source)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "the digits come with scikit-learn, which is not installed. Run `pip install "
            f"scikit-learn`, or use other --data: {REMEDY}"
        ) from error
    found = load_digits()
    return found.images, found.target


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for pixels, labels in NPZ_NAMES:
                if pixels in arrays and labels in arrays:
                    return arrays[pixels][:MOST], arrays[labels][:MOST]
            names = ", ".join(arrays.files) or "none"
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Write or download it again.") from error
    wanted = " or ".join(" and ".join(pair) for pair in NPZ_NAMES)
    raise ConfigError(f"{path} holds the arrays {names}; it has to hold {wanted}.")


def _idx(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = (_idx_file(folder, name, mark) for name, mark in IDX_FILES)
    return pixels, labels


def _idx_file(folder: Path, name: str, mark: int) -> np.ndarray:
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise ConfigError(f"{folder} has no {name} (or {name}.gz). Download all files of the set.")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if int.from_bytes(file.read(4), "big") != mark:
                raise ValueError(f"it does not begin with {mark:#06x}")
            sizes = [int.from_bytes(file.read(4), "big") for _ in range(mark & 0xFF)]
            sizes[0] = min(sizes[0], MOST)
            values = np.frombuffer(file.read(int(np.prod(sizes))), dtype=np.uint8)
            return values.reshape(sizes)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Download it again.") from error


def _table(name: str, **files: Any) -> tuple[np.ndarray, np.ndarray]:
    from datasets import Image, load_dataset

    what = files.get("data_files", name)
    with blamed_on(f"cannot read the data set {what}", REMEDY):
        rows = load_dataset(name, split="train", **files)
        rows = rows.select(range(min(len(rows), MOST)))
    pictures = next((n for n in ("image", "img") if n in rows.column_names), None)
    if pictures is None or "label" not in rows.column_names:
        raise ConfigError(
            f"{what} has the columns {', '.join(rows.column_names)}; a set of pictures has image "
            f"(or img) and label. {REMEDY}"
        )
    with blamed_on(f"the pictures of {what} cannot be read", REMEDY):
        rows = rows.cast_column(pictures, Image(mode="L"))
        pixels = np.stack([np.asarray(picture) for picture in rows[pictures]])
    return pixels, np.asarray(rows["label"])
