"""Checks of local files and folders: are they there, are they empty, are they text?"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

from hf_relopt.errors import ConfigError

PARQUET = ".parquet"
TABLE_KINDS = {
    ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", PARQUET: "parquet",
}  # fmt: skip
CHUNK = 1 << 20  # bytes
# How files begin that are no text, though a good part of some may look like it.
SIGNATURES = {
    b"\x1f\x8b": "a gzip archive", b"PK\x03\x04": "a zip archive", b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive", b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image", b"GIF8": "a GIF image", b"%PDF-": "a PDF document",
    b"PAR1": "a Parquet file", b"\x93NUMPY": "a NumPy array",
    b"ARROW1": "an Arrow file", b"\x7fELF": "a program", b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file", b"\xd0\xcf\x11\xe0": "an Office document",
}  # fmt: skip
# UTF-32 first: its mark begins with that of UTF-16.
OTHER_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
# Real text has a few stray bytes: of them no more than one in two hundred, or three.
STRAY_SHARE, STRAY_BYTES = 0.005, 3
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b")) + b"\x7f"


def check_is_there(path: Path) -> None:
    """Raise a ConfigError if there is no readable file with something in it."""
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
        with path.open("rb") if is_file else io.BytesIO() as file:
            empty = not file.read(1 << 16).strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {system_words(error)}.") from error
    if not is_file:
        if not path.exists():
            raise ConfigError(f"there is no file {path}.")
        there = "is a directory" if is_folder else "is not a regular file"
        raise ConfigError(f"{path} {there}; name a file.")
    if empty:
        raise ConfigError(f"{path} is empty.")


def check_table(path: Path, *, whole: bool = True) -> None:
    """Raise a ConfigError unless a file can be a table of the kind that its name says.

    Args:
        path: of a kind in TABLE_KINDS.
        whole: look at all of it, not at its beginning alone.
    """
    check_is_there(path)
    kind = path.suffix.lower()
    if kind not in TABLE_KINDS:
        raise ConfigError(f"{path} must be a table: {', '.join(TABLE_KINDS)}.")
    if kind != PARQUET:
        check_text(path, whole=whole)
        if TABLE_KINDS[kind] == "json":
            _check_rows(path)
        return
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise ConfigError(f"{path} is not a Parquet file, in spite of its name.")


def _check_rows(path: Path) -> None:
    """Raise a ConfigError for JSON that is not made of objects: its reader may crash on it."""
    with path.open("rb") as file:
        start = file.read(CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"\[\s*\]", start):
        raise ConfigError(f"{path} has no rows.")
    if not re.match(rb"\{|\[\s*\{", start):
        raise ConfigError(
            f'{path} does not hold rows: write one object per line, as in {{"text": "..."}}, or '
            "a list of objects."
        )


def check_text(path: Path, *, whole: bool = True) -> None:
    """Raise a ConfigError if a file is no text in UTF-8.

    Args:
        path: the file.
        whole: look at all of it, not at its beginning alone.
    """
    check_is_there(path)
    if fault := text_fault(path, whole=whole):
        raise ConfigError(f"{path} is not text: {fault}")


def text_fault(path: Path, *, whole: bool = True) -> str | None:
    """Why a file is not text in UTF-8, with the remedy; None if it is."""
    size = stray = 0
    for number, chunk in enumerate(_chunks(path, whole=whole)):
        if number == 0:
            for start, kind in SIGNATURES.items():
                if chunk.startswith(start):
                    return f"it is {kind}. Name a text file, or unpack or convert it first."
            for start, encoding in OTHER_ENCODINGS.items():
                if chunk.startswith(start):
                    return _other_encoding(f"it is in {encoding}", encoding)
        if b"\0" in chunk:
            return (
                "it has NUL bytes, like binary files and UTF-16. Name a text file in UTF-8 "
                "(`iconv -f UTF-16 -t UTF-8 FILE > NEW` converts one)."
            )
        size += len(chunk)
        stray += _stray_bytes(chunk)
    if stray > max(STRAY_BYTES, size * STRAY_SHARE):
        words = f"{stray:,} of its {size:,} bytes are not valid in UTF-8 text"
        return _other_encoding(words, "LATIN1")
    return None


def _other_encoding(words: str, encoding: str) -> str:
    return (
        f"{words}. If it is text in another encoding, convert it: `iconv -f {encoding} -t UTF-8 "
        "FILE > NEW`."
    )


def _chunks(path: Path, *, whole: bool) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            # Not in the middle of a character: to the end of the line, if there is one.
            yield chunk + file.readline(CHUNK)
            if not whole:
                return


def _stray_bytes(chunk: bytes) -> int:
    """Bytes that are no UTF-8, and control characters that no text has."""
    controls = len(chunk) - len(chunk.translate(None, _CONTROL))
    try:
        chunk.decode("utf-8")
        return controls
    except UnicodeDecodeError:
        # Each undecodable byte becomes one character of this range.
        text = chunk.decode("utf-8", errors="surrogateescape")
        return controls + sum("\udc80" <= letter <= "\udcff" for letter in text)


def system_words(error: Exception) -> str:
    """What the file system says of an error."""
    return getattr(error, "strerror", None) or str(error)


def text_files(folder: Path) -> list[Path]:
    """The files of a directory and those below it, hidden and empty ones left out, sorted.

    Raises:
        ConfigError: there is none, or one that is no text.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size and not path.name.startswith(".")
    )
    if not files:
        raise ConfigError(f"there is no text file in the directory {folder}.")
    faults = {path: fault for path in files if (fault := text_fault(path, whole=False))}
    if faults:
        path, fault = next(iter(faults.items()))
        name = path.relative_to(folder)
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise ConfigError(
            f"the directory {folder} holds files that are not text: {name}{more}: "
            f"{fault.partition('. ')[0]}. Move them elsewhere, or name a directory with only text."
        )
    return files


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: names on the hub have one slash, and not in front."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1


def check_is_folder(name: str, what: str) -> None:
    """Raise a ConfigError unless a path that was given for a model or a data set is a folder."""
    try:
        if Path(name).is_dir():
            return
        there = "is a file" if Path(name).exists() else "there is no such folder"
    except (OSError, ValueError) as error:
        there = system_words(error)
    raise ConfigError(
        f"cannot load the {what} {name}: {there}. Name a folder, or a {what} on the hub as in "
        "OWNER/NAME."
    )
