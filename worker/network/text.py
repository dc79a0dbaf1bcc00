"""The text of a container's resolv.conf and hosts files, and the reading of the node's own resolv.conf.

Pure: text in, text out. Where the files lie and when they are written is worker.containers'.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from worker.network.endpoint import Attachment

# Docker's choice when a node has only servers on its own loopback, which a container cannot reach.
FALLBACK_SERVERS = ("8.8.8.8", "8.8.4.4")
_LOCAL_HOSTS = (
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)


def nameservers(resolv_conf: str) -> list[str]:
    """The valid server addresses of a resolv.conf, in order, without scope."""
    found = []
    for words in map(str.split, resolv_conf.splitlines()):
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(str(ipaddress.ip_address(words[1].partition("%")[0])))
            except ValueError:
                continue
    return found


def _last(resolv_conf: str, keyword: str) -> list[str]:
    lines = [words[1:] for words in map(str.split, resolv_conf.splitlines()) if words and words[0] == keyword]
    return lines[-1] if lines else []


def resolv_conf(
    attachment: Attachment,
    host_text: str,
    *,
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
) -> str:
    """A container's resolv.conf: the embedded resolver on user-defined networks, else the node's servers.

    On the host network the node's file is given unchanged unless something was asked for. ``dns`` on a user-defined
    network goes to the resolver as the container's upstreams (see NodeNetwork.reserve), not into the file.
    """
    chosen_search = list(search) if search else _last(host_text, "search")
    chosen_options = list(options) if options else _last(host_text, "options")
    resolvers = [one.resolver for one in attachment.endpoints if one.resolver]
    if resolvers:
        servers = resolvers[:1]
        if not any(option.startswith("ndots:") for option in chosen_options):
            chosen_options = [*chosen_options, "ndots:0"]
    elif any(one.driver == "host" for one in attachment.endpoints):
        if not (dns or search or options):
            return host_text
        servers = list(dns) or nameservers(host_text)
    else:
        reachable = [one for one in nameservers(host_text) if not ipaddress.ip_address(one).is_loopback]
        servers = list(dns) or reachable or list(FALLBACK_SERVERS)
    lines = [f"nameserver {server}" for server in servers]
    if chosen_search and list(chosen_search) != ["."]:
        lines.append("search " + " ".join(chosen_search))
    if chosen_options:
        lines.append("options " + " ".join(chosen_options))
    return "\n".join(lines) + "\n"


def hosts(attachment: Attachment, hostname: str, domain: str = "", extra: Iterable[str] = ()) -> str:
    """A container's hosts file. ``extra`` are Docker's ``name:address``; ``host-gateway`` stands for the bridge's address."""
    lines = list(_LOCAL_HOSTS)
    gateway = next((one.gateway4 for one in attachment.endpoints if one.gateway4), "127.0.0.1")
    for entry in extra:
        name, _, address = entry.replace("=", ":", 1).partition(":")
        lines.append((gateway if address == "host-gateway" else address.strip("[]"), name))
    own = f"{hostname}.{domain} {hostname}" if domain else hostname
    for one in attachment.endpoints:
        lines += [(address, own) for address in (one.ipv4, one.ipv6) if address]
    if any(one.driver == "null" for one in attachment.endpoints):
        lines.append(("127.0.0.1", own))
    return "".join(f"{address}\t{names}\n" for address, names in lines)
