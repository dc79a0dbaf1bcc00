"""A readable name for a container or service nobody named: ``adjective_bird``. Random, so only doors import it."""

from __future__ import annotations

import secrets
from collections.abc import Callable

_ADJECTIVES = """
amber bold brave brisk calm clever cosy crisp curious dapper eager early fair fleet fond frank gentle glad golden happy
hardy honest humble jolly keen kind lively loyal lucid lucky mellow merry mild neat nimble noble patient plain polite
proud quick quiet ready rosy serene sharp silver sleek smart snug solid spry steady stout sunny sure swift tidy trusty
upbeat vivid warm wise witty young zesty
"""
_BIRDS = """
avocet bittern bunting buzzard canary cormorant crane crow cuckoo curlew dipper dove duck dunlin eagle egret eider
falcon finch gannet goose grebe grouse gull harrier hawk heron hoopoe ibis jackdaw jay kestrel kite knot lark linnet
magpie martin merlin nightjar oriole osprey ouzel owl partridge pelican petrel pigeon pipit plover puffin quail rail
raven robin rook ruff shrike siskin skua snipe sparrow starling stork swallow swan teal tern thrush tit wren
"""


def fresh(free: Callable[[str], bool]) -> str:
    """A name that ``free`` accepts."""
    adjectives, birds = _ADJECTIVES.split(), _BIRDS.split()
    while True:
        name = f"{secrets.choice(adjectives)}_{secrets.choice(birds)}"
        for candidate in (name, f"{name}{secrets.randbelow(100)}"):
            if free(candidate):
                return candidate
