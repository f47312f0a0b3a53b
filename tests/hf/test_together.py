"""What the main process finds or refuses holds for every process.

Two real ranks are in tests/distributed/launch_modes.py.
"""

from __future__ import annotations

import pytest

from hf_relopt import FormatError
from hf_relopt.hf.together import on_main_process


def test_alone_a_process_is_the_main_one():
    assert on_main_process(lambda: "found") == "found"
    with pytest.raises(FormatError, match="broken"):
        on_main_process(lambda: (_ for _ in ()).throw(FormatError("broken")))
