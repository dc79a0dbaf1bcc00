"""Decides which images a node lets go by itself: by age, and when the disk is nearly full, the least recently used first.

Pure: images, the disk and now in, verdicts out. What keeps an image: a container, a pin, a service that may be rolled back
to it, recent use; and, since nobody must lose what cannot be got again, a name without a registry's digest (such an image
was loaded, built or imported here). Cached build steps go before any image: they only save work. Sizes are exact: what an
image shares with others that stay is not counted as freed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from covey.errors import InvalidArgument

ROLLBACKS = 2
"""So many images of a service are kept: the one it has and the one it had."""
_FIELDS = ("high", "low", "age", "grace")


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes."""

    used: int
    size: int


@dataclass(frozen=True, slots=True)
class Policy:
    """``high``, ``low``: parts of the disk in use at which collecting begins and ends (0: never because of the disk).

    ``age``: seconds without use after which an image goes (0: never because of its age). ``grace``: seconds after its last
    use in which none goes.
    """

    high: float = 0.9
    low: float = 0.8
    age: float = 0.0
    grace: float = 3600.0

    @property
    def is_off(self) -> bool:
        return not self.high and not self.age

    def idle(self, disk: Disk) -> float | None:
        """Seconds without use after which what a build can make again goes: before images do. None: it stays."""
        if self.excess(disk) > 0:
            return self.grace
        return self.age or None

    def excess(self, disk: Disk) -> float:
        """Bytes to free; 0 while the disk is not nearly full."""
        return disk.used - self.low * disk.size if self.high and disk.used > self.high * disk.size else 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image: ``parts`` are its blobs and layers with their bytes; ``services`` those it was run for, and when last."""

    id: str
    parts: Mapping[str, int]
    used_at: float
    in_use: bool = False
    pinned: bool = False
    can_be_fetched: bool = True
    services: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An image that goes, why, and the bytes that frees."""

    id: str
    why: str
    frees: int


def parse(text: str) -> Policy:
    """``off``, or ``high=90,low=80,age=168h,grace=1h``: percent of the disk, durations. InvalidArgument otherwise."""
    if text == "off":
        return Policy(high=0, age=0)
    values: dict[str, float] = {}
    for word in filter(None, text.split(",")):
        name, equals, value = word.partition("=")
        try:
            values[name] = _seconds(value) if name in ("age", "grace") else float(value.removesuffix("%")) / 100
        except ValueError:
            equals = ""
        if name not in _FIELDS or not equals:
            raise InvalidArgument(f"image collection {word!r}: give off, or high=PERCENT,low=PERCENT,age=TIME,grace=TIME")
    policy = Policy(**values)
    if not 0 <= policy.low <= policy.high <= 1 or policy.age < 0 or policy.grace < 0:
        raise InvalidArgument(f"image collection {text!r}: low is at most high, and both are percent of the disk")
    return policy


def _seconds(text: str) -> float:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)


def needed_for_rollback(images: Sequence[Candidate], alive: Collection[str]) -> set[str]:
    """The ids of the images that each of the ``alive`` services used last, and the time before."""
    kept: set[str] = set()
    for service in alive:
        used = sorted((image for image in images if service in image.services), key=lambda one: one.services[service])
        kept.update(image.id for image in used[-ROLLBACKS:])
    return kept


def decide(images: Sequence[Candidate], alive: Collection[str], disk: Disk, policy: Policy, now: float) -> list[Verdict]:
    """What goes, in this order. ``images``: all of the store, so that what they share is known; ``alive``: ids of the
    services that have containers here."""
    rollback = needed_for_rollback(images, alive)
    free = [
        image
        for image in images
        if not (image.in_use or image.pinned or image.id in rollback)
        and image.can_be_fetched
        and now - image.used_at >= policy.grace
    ]
    holders = Counter(part for image in images for part in image.parts)
    above = policy.excess(disk)
    verdicts = []
    for image in sorted(free, key=lambda one: (one.used_at, one.id)):
        why = ""
        if policy.age and now - image.used_at > policy.age:
            why = f"not used for {(now - image.used_at) / 3600:.0f} h"
        elif above > 0:
            why = f"the disk is {disk.used / disk.size:.0%} full"
        if not why:
            continue
        frees = sum(size for part, size in image.parts.items() if holders[part] == 1)
        holders.subtract(image.parts.keys())
        above -= frees
        verdicts.append(Verdict(image.id, why, frees))
    return verdicts
