"""What a zygote is made of: of the standard library only what it uses, and that does what the whole would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from worker.runtime import compact_json

ROOT = Path(__file__).resolve().parents[3]
LEFT_OUT = {
    "collections", "contextlib", "dataclasses", "enum", "functools", "inspect", "json", "re", "selectors", "signal", "socket",
    "typing",
}  # fmt: skip


def printed(script: str) -> str:
    """What an interpreter as the zygote's prints."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", start + script], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_zygote_has_not_loaded_what_each_of_its_forks_would_carry_along() -> None:
    modules = "print(*sorted(sys.modules))"
    by_itself = set(printed(f"import ctypes, os, struct\n{modules}").split())
    loaded = set(printed(f"import worker.shim.__main__\n{modules}").split())
    assert loaded & LEFT_OUT <= by_itself


TEXTS = (
    '{"a": 1}',
    ' {"a":1.5,"b":[true,null,"\\u00e9"]} \n',
    "1e400",
    "-Infinity",
    '"é"',
    '{"a":',
    "",
    "[1 2]",
    '"\x01"',
    "{}x",
)


def read(text: str, loads: object) -> str:
    try:
        return repr(loads(text.encode()))  # type: ignore[operator]
    except ValueError as error:
        return f"ValueError: {error}"


@pytest.mark.parametrize("text", TEXTS)
def test_json_is_read_as_usual_also_where_the_usual_is_not_loaded(text: str) -> None:
    usual = read(text, json.loads)
    assert read(text, compact_json.loads) == usual
    script = (
        "from worker.runtime import compact_json\n"
        f"try: print(repr(compact_json.loads({text.encode()!r})))\n"
        "except ValueError as error: print(f'ValueError: {error}')"
    )
    assert printed(script) == f"{usual}\n"
