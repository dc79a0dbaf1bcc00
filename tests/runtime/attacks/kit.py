"""Runs INSIDE a container under test: raw system calls by number, through each entry of the kernel.

Imported by the programs of these tests as ``kit``; it must not import anything that the image lacks. Every call answers
its result, or the errno as a negative number, as the kernel does.
"""

import ctypes
import json
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

X32 = 0x40000000
CLONE_NEWUSER = 0x10000000
#: push rbx; eax=nr; ebx, ecx, edx, esi = arguments; int 0x80; sign-extend; pop rbx; ret
_INT80 = bytes.fromhex("53 89f8 89f3 87d1 4489c6 cd80 4898 5b c3")


def call(number, *arguments):
    values = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = _libc.syscall(ctypes.c_long(number), *values)
    return -ctypes.get_errno() if result == -1 else result


def x32(number, *arguments):
    return call(number | X32, *arguments)


def _entry():
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_INT80)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    kind = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_uint32] * 5)
    return page, kind(address)


def int80(number, *arguments):
    """A call through the i386 table."""
    _page, entry = _entry()
    return entry(number, *arguments, *[0] * (4 - len(arguments)))


def low_words(values):
    """Address below 4 GiB of an array of 32-bit words, for i386 calls that take a pointer."""
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)
    page.write(b"".join((value & 0xFFFFFFFF).to_bytes(4, "little") for value in values))
    low_words.kept.append(page)
    return ctypes.addressof(ctypes.c_char.from_buffer(page))


low_words.kept = []


def tried(function, *arguments, **named):
    """ "ok", or the name of the errno with which it failed."""
    try:
        function(*arguments, **named)
    except OSError as error:
        return os.strerror(error.errno)
    return "ok"


def tell(**values):
    print(json.dumps(values), flush=True)
