"""The file of finished cells: what is whole is kept, what is torn is measured again."""

from __future__ import annotations

import pytest
from curvature_log import CellLog

from hf_relopt.errors import ConfigError

CELL = {"loss": 1.0, "points": []}


def test_cells_are_found_by_their_key_in_the_order_they_ended(tmp_path):
    log = CellLog(tmp_path / "new" / "cells.jsonl")
    assert log.records() == [] and log.finished({"seed": 0}) is None
    for seed in (1, 0):
        log.append({"seed": seed}, CELL)
    assert [record["key"]["seed"] for record in log.records()] == [1, 0]
    assert CellLog(log.path).finished({"seed": 0}) == {"key": {"seed": 0}, **CELL}
    assert log.finished({"seed": 2}) is None


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_loses_that_cell_alone(cut, tmp_path):
    log = CellLog(tmp_path / "cells.jsonl")
    for seed in (0, 1):
        log.append({"seed": seed}, CELL)
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    again = CellLog(log.path)
    # Without its line break alone the line is whole.
    assert (again.finished({"seed": 1}) is None) == (cut > 1)
    again.append({"seed": 2}, CELL)
    kept = [record["key"]["seed"] for record in again.records()]
    assert kept == ([0, 1, 2] if cut == 1 else [0, 2])


@pytest.mark.parametrize("content", [b"", b'{"key', b'{"key": {"seed": 0}, "po'])
def test_a_first_cell_that_was_cut_off_is_measured_again(content, tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_bytes(content)
    log = CellLog(path)
    log.append({"seed": 0}, CELL)
    assert [record["key"] for record in log.records()] == [{"seed": 0}]


@pytest.mark.parametrize("content", [b"notes of mine\n", b'{"step": 1}\n', b"\xff\xfe\0\0"])
def test_a_file_of_someone_else_is_left_alone(content, tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cells\.jsonl holds no cells of this script"):
        CellLog(path)
    assert path.read_bytes() == content
