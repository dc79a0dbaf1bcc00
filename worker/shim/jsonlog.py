"""The entries of Docker's json-file log: {"log":"text\\n","stream":"stdout","attrs":{…},"time":"RFC 3339, nanoseconds"}.

One line an entry; ``attrs`` only where there are some. Files and lines are worker.shim.logfile.
"""

from __future__ import annotations

import time
from _json import encode_basestring

from worker.shim.logfile import STREAM_NAME, LogFile


class JsonLog(LogFile):
    """One JSON object a line."""

    def begin(self, attrs: dict[str, str]) -> None:
        self._second = -1
        self._prefix = ""
        entries = ",".join(f"{encode_basestring(name)}:{encode_basestring(value)}" for name, value in attrs.items())
        self._attrs = f',"attrs":{{{entries}}}' if attrs else ""

    def entry(self, stream: int, text: bytes) -> bytes:
        log = encode_basestring(text.decode("utf-8", "replace"))
        return f'{{"log":{log},"stream":"{STREAM_NAME[stream]}"{self._attrs},"time":"{self._now()}"}}\n'.encode()

    def _now(self) -> str:
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if seconds != self._second:
            self._second = seconds
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return f"{self._prefix}.{nanoseconds:09d}Z"
