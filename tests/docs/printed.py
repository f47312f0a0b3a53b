"""Is what a script prints what its page says it prints?"""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")


def difference(said: str, printed: str) -> str | None:
    """The first line of a page that was not printed, or None if all were.

    Numbers with a decimal point may differ by two units of their last digit, or by a thousandth:
    machines sum in another order. A line ``...`` stands for any lines, as in doctest.
    """
    wanted, lines, anywhere = said.splitlines(), printed.splitlines(), False
    for line in wanted:
        if line.strip() == "...":
            anywhere = True
            continue
        if anywhere:
            while lines and not _alike(line, lines[0]):
                del lines[0]
        if not lines or not _alike(line, lines[0]):
            return f"{line!r} is said, {lines[0] if lines else 'nothing'!r} was printed"
        del lines[0]
        anywhere = False
    return None if anywhere or not lines else f"{lines[0]!r} was printed, too"


def _alike(said: str, printed: str) -> bool:
    # Columns may be wider or narrower by a sign.
    words = [" ".join(_NUMBER.sub("0", line).split()) for line in (said, printed)]
    pairs = zip(_NUMBER.findall(said), _NUMBER.findall(printed), strict=False)
    return words[0] == words[1] and all(_close(*pair) for pair in pairs)


def _close(said: str, printed: str) -> bool:
    one, other = (Decimal(number.replace(",", "")) for number in (said, printed))
    if "." not in said:
        return one == other
    last_digit = Decimal(1).scaleb(int(one.as_tuple().exponent))
    return abs(one - other) <= max(2 * last_digit, abs(one) / 1000)
