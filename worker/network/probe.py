"""What the kernel and the system must have for bridge networks, tried in a throwaway network namespace.

Nothing of the node is touched: a thread enters a namespace of its own, tries, and takes it along when it ends.
"""

from __future__ import annotations

import os
import threading

from worker.kernel import syscalls
from worker.kernel.netlink import Netlink
from worker.kernel.netlink_codec import Message, create_bridge, create_veth
from worker.kernel.nft import Nft, NftError

_TABLE = """\
table inet covey_probe {
  map ports { type inet_proto . inet_service : verdict; }
  set subnets { type ifname . ipv4_addr; flags interval; }
  chain out { type nat hook output priority -100; fib daddr type local meta l4proto . th dport vmap @ports; }
  chain one { meta l4proto tcp dnat ip to numgen inc mod 2 map { 0 : 192.0.2.1 . 80, 1 : 192.0.2.2 . 80 } ; }
  chain post { type nat hook postrouting priority srcnat; ct status dnat oifname . ip saddr @subnets masquerade; }
}
"""


def kernel_problems() -> list[str]:
    """One line for each thing that is missing, with what to do; empty when bridge networks can work."""
    problems: list[str] = []

    def enter() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
        except OSError as error:
            problems.append(f"network namespaces are not available to uid {os.geteuid()} ({error}); run as root")
            return
        _try_link("bridge", create_bridge("probe0"), problems)
        _try_link("veth", create_veth("probe1", "probe2"), problems)
        try:
            with Nft() as nft:
                nft.run(_TABLE)
        except (NftError, OSError) as error:
            first = str(error).splitlines()[0]
            problems.append(f"nftables cannot do NAT here ({first}); it needs CONFIG_NF_TABLES and CONFIG_NFT_NAT")

    thread = threading.Thread(target=enter, name="network-probe", daemon=True)
    thread.start()
    thread.join()
    return problems


def _try_link(kind: str, request: Message, problems: list[str]) -> None:
    try:
        with Netlink() as netlink:
            netlink.run(request)
    except OSError as error:
        problems.append(f"the kernel has no {kind} links ({error}); it needs CONFIG_{kind.upper()} or: modprobe {kind}")
