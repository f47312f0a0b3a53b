"""Weights in codes on several ranks are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.in_codes import CHECKS
from tests.distributed.ranks import HERE, forked
from tests.distributed.test_sharded import assert_done


@pytest.mark.dist
@pytest.mark.slow
def test_codes_equal_one_process(tmp_path: Path) -> None:
    """Three ranks, so that shards are uneven."""
    done = forked(3, HERE / "in_codes.py", str(tmp_path))
    assert_done(done, 3, [check.__name__ for check in CHECKS])
