"""Layers for the table `images`, made from a seed: as many files, as large, and as compressible as those of real images.

A third of the files are words, the rest resembles programs: patterns that come again, with noise between them. gzip makes
about a third of them. Bytes only; nothing is measured here.
"""

from __future__ import annotations

import gzip
import io
import random
import tarfile

_EPOCH = 1_700_000_000


def layers(seed: int, count: int, files: int, total: int) -> list[bytes]:
    """``count`` gzipped tars, lowest first, of ``files`` files and about ``total`` bytes in all."""
    return [gzip.compress(_tar(seed + number, files // count, total // count), 6) for number in range(count)]


def _tar(seed: int, files: int, total: int) -> bytes:
    rng = random.Random(seed)
    weights = [rng.paretovariate(1.2) for _ in range(files)]
    scale = total / sum(weights)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number, weight in enumerate(weights):
            directory = f"usr/lib/package{seed}-{number // 40}"
            if number % 40 == 0:
                info = tarfile.TarInfo(directory)
                info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, _EPOCH
                archive.addfile(info)
            make = _words if number % 3 == 0 else _program
            data = make(rng, int(weight * scale) + 1)
            info = tarfile.TarInfo(f"{directory}/file{number}")
            info.mode, info.mtime, info.size = 0o644, _EPOCH, len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _words(rng: random.Random, size: int) -> bytes:
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(400)]
    return b" ".join(rng.choices(words, k=size // 5 + 1))[:size]


def _program(rng: random.Random, size: int) -> bytes:
    pattern = rng.randbytes(96)
    out = bytearray()
    while len(out) < size:
        out += pattern[: rng.randint(16, 96)] + rng.randbytes(rng.randint(4, 48)) + bytes(rng.randint(0, 16))
    return bytes(out[:size])
