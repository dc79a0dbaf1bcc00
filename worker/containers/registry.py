"""The containers of this node: on disk one directory each, in memory by id and by name.

It decides that names are unique, what a reference (name, id, id prefix) means, and that a record is replaced whole. It
must not know what runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from covey.errors import Conflict, Internal, InvalidArgument, NotFound
from worker.containers import record
from worker.containers.record import Container
from worker.kernel import trees
from worker.runtime.errors import remedy

log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


def check_name(name: str) -> str:
    """``name`` without its leading slash. Raises InvalidArgument in Docker's words."""
    bare = name.removeprefix("/")
    if not _NAME.fullmatch(bare):
        raise InvalidArgument(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return bare


class Registry:
    """All containers; the directory is ``root`` (``<data>/containers``). Used from one thread.

    ``root`` with "-removed" is where the directories of removed containers wait to be deleted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._scratch = root.with_name(f"{root.name}-removed")
        self._by_id: dict[str, Container] = {}
        self._by_name: dict[str, str] = {}

    def load(self) -> None:
        """Reads every record; a directory without a whole one (a create that a crash cut) is removed."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o710)
        trees.spread(self.root)
        trees.emptied(self._scratch)
        for directory in sorted(self.root.iterdir()):
            path = directory / "config.json"
            try:
                container = record.decode(path.read_bytes())
            except FileNotFoundError:
                log.warning("container directory %s has no record (a create was cut): removed", directory)
                shutil.rmtree(directory, ignore_errors=True)
                continue
            except (OSError, ValueError) as error:
                log.error("container record %s cannot be read and is left alone: %s", path, error)
                continue
            self._by_id[container.id] = container
            self._by_name[container.name] = container.id

    def directory(self, container_id: str) -> Path:
        return self.root / container_id

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, container_id: str) -> Container | None:
        """By full id only."""
        return self._by_id.get(container_id)

    def resolve(self, ref: str) -> Container:
        """The container ``ref`` means: id, then name, then unique id prefix. NotFound, or InvalidArgument if ambiguous."""
        bare = ref.removeprefix("/")
        found = self._by_id.get(bare) or self._by_id.get(self._by_name.get(bare, ""))
        if found is not None:
            return found
        matches = [key for key in self._by_id if key.startswith(bare)] if bare else []
        if len(matches) > 1:
            raise InvalidArgument(f"Multiple IDs found with provided prefix: {bare}")
        if not matches:
            raise NotFound(f"No such container: {ref}")
        return self._by_id[matches[0]]

    def claim(self, name: str, container_id: str) -> None:
        """Takes ``name`` for the container before it exists. Raises Conflict in Docker's words."""
        holder = self._by_name.get(name)
        if holder is not None and holder != container_id:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        self._by_name[name] = container_id

    def release_name(self, name: str, container_id: str) -> None:
        if self._by_name.get(name) == container_id:
            del self._by_name[name]

    def name_free(self, name: str) -> bool:
        return name not in self._by_name

    def add(self, container: Container) -> None:
        """Puts the container into the registry and on disk; its name must be claimed.

        Raises Internal, OSError; it is in neither then.
        """
        self._by_id[container.id] = container
        try:
            self.directory(container.id).mkdir(mode=0o710, exist_ok=True)
            self.save(container, sync=True)
        except BaseException:
            del self._by_id[container.id]
            with contextlib.suppress(OSError):
                shutil.rmtree(self.retire(container.id) or "", ignore_errors=True)
            raise

    def save(self, container: Container, *, sync: bool = False) -> None:
        """Replaces the record on disk. ``sync``: it must outlive a power cut. Raises Internal when the disk is full."""
        if container.id not in self._by_id:
            return
        path = self.directory(container.id) / "config.json"
        temporary = path.with_name(".config.json.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(record.encode(container))
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            what = f"cannot write the record of container {container.short} to {path}: {error.strerror}"
            raise Internal(f"{what}{remedy(error)}") from error

    def sync(self, ids: Iterable[str]) -> None:
        """Has the disk take the records of these containers; one that is gone needs it no more. Blocking."""
        for one in ids:
            try:
                with open(self.directory(one) / "config.json", "rb") as file:
                    os.fsync(file.fileno())
            except FileNotFoundError:
                continue
            except OSError as error:
                log.error("the record of container %s may not outlive a power cut: %s", one, error)

    def rename(self, container: Container, name: str) -> None:
        """Gives the container another name. Raises Conflict."""
        self.claim(name, container.id)
        former, container.name = container.name, name
        self.release_name(former, container.id)
        self.save(container, sync=True)

    def forget(self, container: Container) -> None:
        """The container is no more."""
        self._by_id.pop(container.id, None)
        self.release_name(container.name, container.id)

    def retire(self, container_id: str) -> Path | None:
        """Takes what is on disk away, by which the container is removed: where it lies now, to be deleted beside."""
        return trees.set_aside(self.directory(container_id), self._scratch)
