"""The package's logger: once is once, and other ranks than the first are silent."""

from __future__ import annotations

import logging

from hf_relopt.hf import log
from tests.hf.tiny import passed, python


def test_a_message_is_said_once_and_at_debug_level_after_that(said):
    log.logger.setLevel(logging.DEBUG)
    try:
        for _ in range(2):
            log.say_once(logging.WARNING, "a message of this test alone, 50 % of it")
    finally:
        log.logger.setLevel(logging.INFO)
    assert list(zip(said.lines, said.levels, strict=True)) == [
        ("a message of this test alone, 50 % of it", "WARNING"),
        ("a message of this test alone, 50 % of it", "DEBUG"),
    ]


def test_a_script_that_configures_nothing_sees_it_on_the_first_rank_alone():
    code = "from hf_relopt.hf.log import logger; logger.info('here'); logger.debug('hidden')"
    assert passed(first := python(code)) == ""
    assert first.stderr == "[hf_relopt] here\n"
    assert python(code, RANK="1").stderr == ""
