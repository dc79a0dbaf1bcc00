"""Ids are numbers in base 36, the same as long as there have been any: they are keys in stores."""

from __future__ import annotations

import random

from covey.ids import base36, task_id

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def test_base36_is_the_plain_thing() -> None:
    rng = random.Random(1)
    for _ in range(500):
        number, width = rng.getrandbits(rng.randint(0, 130)), rng.randint(0, 30)
        digits = [DIGITS[number // 36**place % 36] for place in range(width)]
        assert base36(number, width) == "".join(reversed(digits))


def test_a_task_id_stays_what_it_was() -> None:
    assert task_id("service", 3, "", 1) == "9dord1l6t6v8z9h9b9ojke2pd"
