"""Which message a file gets that is no JSON object."""

from __future__ import annotations

import pytest

from hf_relopt.errors import FormatError
from hf_relopt.report.json_file import read_object


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is cut"),
        (b'{"a": 1, "b', "is cut"),
        (b'{"a": [1, 2', "is cut"),
        (b"hello}", "is not JSON"),
        (b"\xff\xfe", "is cut"),
        (b"[1]", "does not hold a JSON object"),
        (b"null", "does not hold a JSON object"),
    ],
)
def test_the_fault_is_named(tmp_path, content, fault):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=fault) as error:
        read_object(path)
    assert str(path) in str(error.value)


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(FormatError, match="cannot be read: Is a directory"):
        read_object(tmp_path)


def test_nan_is_read(tmp_path):
    (tmp_path / "run.json").write_text('{"a": NaN, "b": 1}')
    assert read_object(tmp_path / "run.json")["b"] == 1
