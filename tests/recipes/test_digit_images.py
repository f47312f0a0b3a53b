"""Pictures from every kind of source come out the same, and sources that are none are refused."""

from __future__ import annotations

import gzip
import re

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Image
from digit_images import IDX_FILES, read_images

from hf_relopt.errors import ConfigError


@pytest.fixture(scope="module")
def pictures():
    """20 pictures of 6 x 6 bytes with three classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 6), dtype=np.uint8)
    return pixels, np.arange(20, dtype=np.uint8) % 3


def write_idx(folder, pixels, labels, packed):
    for (name, mark), values in zip(IDX_FILES, (pixels, labels), strict=True):
        head = mark.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in values.shape)
        with gzip.open(folder / f"{name}.gz", "wb") if packed else (folder / name).open("wb") as f:
            f.write(head + values.tobytes())
    return folder


def write_parquet(path, pixels, labels, column="image"):
    shown = [PIL.Image.fromarray(picture) for picture in pixels]
    rows = Dataset.from_dict({column: shown, "label": labels.tolist()})
    rows.cast_column(column, Image()).to_parquet(path)
    return path


def test_the_digits_are_standardized_rows():
    images = read_images("digits", 8)
    assert images.pixels.shape == (1797, 64) and images.classes == 10
    assert images.pixels.mean().abs() < 1e-5 and images.pixels.std() == pytest.approx(1, abs=1e-5)
    smaller = read_images("digits", 4)
    assert smaller.pixels.shape == (1797, 16) and smaller.crc32 != images.crc32


@pytest.mark.parametrize("kind", ["npz", "medmnist", "idx", "idx.gz", "parquet", "folder", "color"])
def test_every_kind_of_source_gives_the_same_pictures(kind, pictures, tmp_path):
    pixels, labels = pictures
    source = tmp_path / f"set.{kind}"
    if kind in ("npz", "medmnist", "color"):
        names = ("train_images", "train_labels") if kind == "medmnist" else ("x_train", "y_train")
        shown = np.stack([pixels] * 3, axis=-1) if kind == "color" else pixels
        source = source.with_suffix(".npz")
        # MedMNIST's classes are a column.
        classes = labels[:, None] if kind == "medmnist" else labels
        np.savez(source, **{names[0]: shown, names[1]: classes})
    elif kind.startswith("idx"):
        source = write_idx(tmp_path, pixels, labels, packed=kind == "idx.gz")
    elif kind == "parquet":
        write_parquet(source, pixels, labels)
    else:
        source = tmp_path
        write_parquet(tmp_path / "train-00000-of-00001.parquet", pixels, labels, column="img")
    images = read_images(str(source), 6)
    expected = torch.from_numpy(pixels.astype(np.float32)).flatten(1)
    expected = (expected - expected.mean()) / expected.std()
    torch.testing.assert_close(images.pixels, expected)
    assert images.labels.tolist() == labels.tolist() and images.name == source.name


@pytest.mark.parametrize(
    ("arrays", "side", "message"),
    [
        ({"x_train": np.ones((4, 6, 6)), "y_train": np.arange(4)}, 6, "blank"),
        ({"x_train": np.eye(6)[None].repeat(4, 0), "y_train": np.arange(4)}, 7, "6 at most, not 7"),
        ({"x_train": np.eye(6), "y_train": np.arange(6)}, 6, "no pictures with one class each"),
        ({"x_train": np.ones((0, 6, 6)), "y_train": np.arange(0)}, 6, "no pictures"),
        ({"x_train": np.ones((4, 6, 6)), "y_train": np.arange(3)}, 6, r"\[4, 6, 6\] and \[3\]"),
        ({"x_train": np.ones((4, 6, 6)), "y_train": np.zeros(4)}, 6, "whole numbers"),
        ({"x_train": np.ones((4, 6, 6)), "y_train": np.zeros(4, int)}, 6, "two at least"),
        ({"x_train": np.full((2, 6, 6), np.nan), "y_train": np.arange(2)}, 6, "not finite"),
        ({"pixels": np.ones((4, 6, 6))}, 6, "holds the arrays pixels; it has to hold x_train and"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(arrays, side, message, tmp_path):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        read_images(str(tmp_path / "set.npz"), side)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.npz", b"", "is empty"),
        ("set.npz", b"PK\x03\x04 and no more", "cannot be read"),
        ("set.npz", b"words", "cannot be read"),
        ("set.parquet", b"PAR1 and no more", "cannot read the data set"),
        ("set.txt", b"words", "is no file of pictures"),
        ("missing.npz", None, "there is no file"),
        ("missing/set", None, "does not exist as a file"),
    ],
)
def test_files_that_are_no_pictures_are_refused(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_images(str(path), 6)


def test_a_name_that_the_hub_cannot_give_offline_is_refused_with_the_other_ways():
    with pytest.raises(ConfigError, match=re.escape("nobody/no-such-set") + ".*a .npz or .parquet"):
        read_images("nobody/no-such-set", 6)


@pytest.mark.parametrize("fault", ["mark", "cut", "missing"])
def test_damaged_files_of_mnist_are_refused_by_name(fault, pictures, tmp_path):
    write_idx(tmp_path, *pictures, packed=False)
    (name, _), (labels, _) = IDX_FILES
    if fault == "missing":
        (tmp_path / labels).unlink()
    else:
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw[:-7] if fault == "cut" else b"\0\0\0\0" + raw[4:])
    expected = labels if fault == "missing" else f"{name} cannot be read"
    with pytest.raises(ConfigError, match=expected):
        read_images(str(tmp_path), 6)


def test_a_table_without_pictures_is_refused_with_its_columns(tmp_path):
    path = tmp_path / "words.parquet"
    Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(path)
    with pytest.raises(ConfigError, match=r"columns text, label; a set of pictures has image"):
        read_images(str(path), 6)
