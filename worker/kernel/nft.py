"""nftables through libnftables.so.1: one context for a network namespace, used by the one thread that made it.

`Nft.run` executes a text (or JSON) batch, which the kernel applies whole or not at all; what nft would print as an error
is the exception's text. It knows nothing of what the rules are for.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from typing import Any, Self

_JSON, _STATELESS, _HANDLE = 1 << 4, 1 << 2, 1 << 3
_NEEDED = 4
_LIBRARY = "libnftables.so.1"


class NftError(Exception):
    """The batch was refused: nothing of it is in force. The text is nft's, the commands follow for the log."""

    def __init__(self, words: str, commands: str) -> None:
        super().__init__(words or "nftables refused the batch without a reason")
        self.commands = commands


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NftError(f"{_LIBRARY} is missing ({error}); install the package libnftables1", "") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).restype = ctypes.c_char_p
        getattr(library, name).argtypes = [ctypes.c_void_p]
    return library


def _check_descriptors() -> None:
    """Raises OSError when few are left: libnftables ends the whole process where it cannot open a netlink socket."""
    held: list[int] = []
    try:
        for _ in range(_NEEDED):
            held.append(os.eventfd(0, os.EFD_CLOEXEC))
    finally:
        for fd in held:
            os.close(fd)


class Nft:
    """A libnftables context bound to the namespace of the thread that made it; other threads are refused."""

    def __init__(self) -> None:
        self._library = _load()
        self._thread = threading.get_ident()
        _check_descriptors()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise NftError("libnftables gave no context (out of memory)", "")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def run(self, commands: str, *, dry: bool = False) -> str:
        """Executes the commands as one transaction and returns what they print. ``dry`` only checks the text.

        Raises NftError with nft's words; then nothing was changed.
        """
        return self._run(commands, _STATELESS, dry)

    def run_json(self, request: dict[str, Any]) -> dict[str, Any]:
        """The same in nft's JSON schema (libnftables-json(5)): ``{"nftables": [...]}`` to the like answer."""
        answer = self._run(json.dumps(request), _JSON | _STATELESS | _HANDLE, False)
        return dict(json.loads(answer)) if answer.strip() else {}

    def _run(self, commands: str, flags: int, dry: bool) -> str:
        if not self._context:
            raise NftError("the nftables context is closed", commands)
        if threading.get_ident() != self._thread:
            raise NftError("the nftables context belongs to another thread", commands)
        _check_descriptors()
        self._library.nft_ctx_output_set_flags(self._context, flags)
        self._library.nft_ctx_set_dry_run(self._context, dry)
        code = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = (self._library.nft_ctx_get_output_buffer(self._context) or b"").decode(errors="replace")
        words = (self._library.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace").strip()
        if code != 0:
            raise NftError(words, commands)
        return str(output)
