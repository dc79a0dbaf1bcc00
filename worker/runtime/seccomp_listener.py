"""Hands a seccomp listener's descriptor to the agent that answers for it (OCI config-linux.md, "listenerPath").

One connection, one message, one descriptor. Filters and processes are other modules' business.
"""

from __future__ import annotations

import _socket
import struct

from worker.kernel.bare import Any
from worker.runtime import compact_json
from worker.runtime.errors import RuntimeFault

_PATIENCE = 10.0


def deliver(path: str, metadata: str, fd: int, state: dict[str, Any], pid: int) -> None:
    """Send the container process state of ``pid`` and the descriptor to the socket at ``path``. Raises RuntimeFault.

    ``state``: the container's, as worker.runtime.hooks.state makes it.
    """
    body: dict[str, Any] = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid}
    if metadata:
        body["metadata"] = metadata
    body["state"] = state
    data = compact_json.dumps(body)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(_PATIENCE)
        connection.connect(path)
        # The descriptor goes with the first part only.
        sent = connection.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))])
        connection.sendall(data[sent:])
    except OSError as error:
        words = error.strerror or str(error)
        raise RuntimeFault("kernel", f"linux.seccomp.listenerPath: {path}: {words}", "seccomp") from None
    finally:
        connection.close()
