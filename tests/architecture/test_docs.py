"""The documents name files that exist: a tour that points into empty rooms teaches nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_NAMED = re.compile(r"`((?:covey|scheduler|manager|worker|cli|tests|docs|scripts|compose-stacks)/[\w./-]*)`")
_LINKED = re.compile(r"\]\((?!https?:)([^)#]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_a_document_names_is_there(document: Path) -> None:
    text = document.read_text()
    named = [ROOT / name for name in _NAMED.findall(text)] + [document.parent / name for name in _LINKED.findall(text)]
    missing = [str(path) for path in named if not path.exists()]
    assert not missing
