"""Files that are not text are refused with one sentence; real text may have a few stray bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import pickle
import sqlite3
import zipfile

import numpy as np
import pytest
from causal_text import load_documents
from local_files import CHUNK, check_table, check_text, text_fault, text_files
from matplotlib import pyplot
from pretrain_clm import TextSource

from hf_relopt.errors import ConfigError

PROSE = "The cat sees a bird, and the bird sees the cat.\n" * 40
FRENCH = "Le café est à côté de l'hôtel, où l'été dernière...\n" * 40


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", PROSE)


def database(path):
    connection = sqlite3.connect(path)
    connection.execute("create table t (x)")
    connection.commit()
    connection.close()


def picture(path):
    pyplot.imsave(path, np.zeros((4, 4, 3)), format="png")


def array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(99))


def parquet(path):
    from datasets import Dataset

    Dataset.from_dict({"text": ["a", "b"]}).to_parquet(path)


KINDS = {
    "gzip": (lambda path: path.write_bytes(gzip.compress(PROSE.encode())), "gzip archive"),
    "bzip2": (lambda path: path.write_bytes(bz2.compress(PROSE.encode())), "bzip2 archive"),
    "xz": (lambda path: path.write_bytes(lzma.compress(PROSE.encode())), "xz archive"),
    "zip": (archive, "zip archive"),
    "png": (picture, "PNG image"),
    "pdf": (lambda path: path.write_bytes(b"%PDF-1.4\n" + PROSE.encode()), "PDF document"),
    "parquet": (parquet, "Parquet file"),
    "npy": (array, "NumPy array"),
    "sqlite": (database, "SQLite database"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(list(range(500)))), "not text"),
    "utf-16": (lambda path: path.write_bytes(PROSE.encode("utf-16")), "iconv -f UTF-16"),
    "utf-16 without a mark": (lambda path: path.write_bytes(PROSE.encode("utf-16-le")), "NUL"),
    "utf-16 of few NULs": (
        lambda path: path.write_bytes("中文字母表".encode("utf-16-be") * 99),
        "not valid in UTF-8 text",
    ),
    "utf-32": (lambda path: path.write_bytes(PROSE.encode("utf-32")), "iconv -f UTF-32"),
    "latin-1": (lambda path: path.write_bytes(FRENCH.encode("latin-1")), "iconv -f LATIN1"),
    "one NUL": (lambda path: path.write_bytes(PROSE.encode() + b"\0" + PROSE.encode()), "NUL"),
    "a late NUL": (
        lambda path: path.write_bytes(b"word " * (CHUNK // 2) + b"\0" + PROSE.encode()), "NUL"
    ),
    "random": (
        lambda path: path.write_bytes(
            np.random.default_rng(0).integers(1, 256, 999, dtype=np.uint8).tobytes()
        ),
        "not valid in UTF-8 text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_text_is_refused_with_one_sentence(kind, tmp_path):
    write, words = KINDS[kind]
    path = tmp_path / "file.txt"
    write(path)
    with pytest.raises(ConfigError) as error:
        check_text(path)
    message = str(error.value)
    assert words in message and str(path) in message and "\n" not in message
    with pytest.raises(ConfigError):
        load_documents(TextSource(train_file=str(path)))


@pytest.mark.parametrize(
    "content",
    [
        PROSE.encode(),
        FRENCH.encode(),
        ("中文字母表 🙂 naïve\n" * 50).encode(),
        PROSE.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + PROSE.encode(),
        PROSE.encode() + b"\x1b[31mred\x1b[0m\f\n",
        PROSE.encode() + b"caf\xe9 and \x93quotes\x94",  # a few bytes of another encoding
        b"short caf\xe9",
        ("ü" * CHUNK).encode(),  # one line, which is cut somewhere
    ],
    ids=["English", "French", "Chinese", "CRLF", "BOM", "escapes", "strays", "short", "one line"],
)
def test_real_text_passes(content, tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    check_text(path)


def test_the_beginning_alone_is_a_first_look(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"word " * CHUNK + b"\0")
    assert text_fault(path, whole=False) is None
    assert "NUL" in text_fault(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", PROSE.encode("utf-16"), "UTF-16"),
        ("t.jsonl", gzip.compress(b"{}", mtime=0), "gzip"),
        ("t.tsv", b"a\tb\n1\t\0\n", "NUL"),
        ("t.parquet", b"a,b\n1,2\n", "not a Parquet file, in spite of its name"),
        ("t.xlsx", b"PK\x03\x04....", "must be a table"),
        ("t.json", b"  \n", "is empty"),
    ],
)
def test_tables_are_looked_at_as_well(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        check_table(tmp_path / name)


def test_a_directory_with_a_picture_names_it(tmp_path):
    (tmp_path / "a.txt").write_text(PROSE)
    picture(tmp_path / "b.png")
    (tmp_path / "c.bin").write_bytes(bytes(range(256)))
    (tmp_path / ".hidden").write_bytes(b"\0")
    with pytest.raises(ConfigError, match=r"not text: b\.png \(and 1 more\): it is a PNG image"):
        text_files(tmp_path)
    for name in ("b.png", "c.bin"):
        (tmp_path / name).unlink()
    assert [path.name for path in text_files(tmp_path)] == ["a.txt"]


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "/dev/null/x"])
def test_names_that_no_file_has(path, tmp_path):
    from pathlib import Path

    with pytest.raises(ConfigError):
        check_text(Path(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("null", "does not hold rows"), ("5", "does not hold rows"), ('"x"', "does not hold rows"),
        ("[1]", "does not hold rows"), ("[[1]]", "does not hold rows"),
        ("[null]", "does not hold rows"), (" [ ]", "has no rows"),
        ('{"text": "a"}\n', None), ('\ufeff[\n {"text": "a"}]', None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_json_is_made_of_objects(content, words, kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    path.write_text(content, encoding="utf-8")
    if words is None:
        check_table(path)
        return
    with pytest.raises(ConfigError, match=words):
        check_table(path)


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ConfigError, match="is not a regular file"):
        check_text(tmp_path / "pipe.txt")
