"""Mends what worker.images.fsck found, as far as the node can by itself.

Decides what is done about each kind of fault: tables are written again from memory, a damaged blob is removed so that the
next pull or load brings it, a layer is unpacked again from its blob. A layer that a running container stands on is left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from covey.errors import CoveyError
from worker.images import fsck
from worker.images.content import ContentStore
from worker.images.fsck import Fault
from worker.images.image import Image
from worker.images.layers import LayerStore

_UNUSED = "left: no image has it, and the next collection removes it"


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault and what was done about it; ``mended``: nothing is left to do for the user."""

    fault: Fault
    done: str = ""
    mended: bool = False


@dataclass(frozen=True, slots=True)
class Repairer:
    """``images``: all of the store; ``mounted`` gives the chain ids that running containers stand on;
    ``write_tables`` writes the tables again."""

    content: ContentStore
    layers: LayerStore
    images: Sequence[Image]
    mounted: Callable[[], Collection[str]]
    write_tables: Callable[[], None]

    def mend(self, faults: Iterable[Fault]) -> Iterator[Finding]:
        """Faults as they come, each with what was done. Tables and blobs first, then layers from the lowest up."""
        found = list(faults)
        if any(fault.kind == fsck.TABLE for fault in found):
            self.write_tables()
        for fault in found:
            if fault.kind == fsck.TABLE:
                yield Finding(fault, "written again", mended=True)
            elif fault.kind == fsck.BLOB:
                yield self._blob(fault)
        broken: dict[str, list[Fault]] = {}
        for fault in found:
            if fault.kind == fsck.LAYER:
                broken.setdefault(fault.key, []).append(fault)
        places = {layer.chain_id: (image, height) for image in self.images for height, layer in enumerate(image.layers)}
        for chain in sorted(broken, key=lambda chain: places[chain][1] if chain in places else 0):
            done, mended = self._layer(chain, *places[chain]) if chain in places else (_UNUSED, True)
            for fault in broken[chain]:
                yield Finding(fault, done, mended)

    def _blob(self, fault: Fault) -> Finding:
        needed = any(fault.key in image.blobs for image in self.images)
        if not fault.path.exists():
            return Finding(fault)
        if self.content.is_leased(fault.key):
            return Finding(fault, "left: it is being read or written now")
        fault.path.unlink()
        return Finding(fault, "removed", mended=not needed)

    def _layer(self, chain: str, image: Image, height: int) -> tuple[str, bool]:
        if chain in self.mounted():
            return "left: a running container stands on it; stop it first", False
        if self.content.is_leased(chain):
            return "left: it is in use now; try again", False
        try:
            with self.content.open(image.layers[height].digest) as blob:
                self.layers.replace([layer.diff_id for layer in image.layers[: height + 1]], blob)
        except (CoveyError, OSError) as error:
            return f"cannot be unpacked again: {error}", False
        return "unpacked again", True
