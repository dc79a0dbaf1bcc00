"""PURE: OCI linux.resources → the cgroup files to write, in order, for v1 and for v2.

The order is the meaning where the kernel couples files (period before quota, memory before memory+swap). Left out are
only memory.kernel and memory.kernelTCP, which the kernel has given up (5.16, 6.12) and the specification advises against.
What a version has nothing for is an error. Sources: OCI config-linux.md, the kernel's cgroup-v1 and cgroup-v2 documents.
"""

from __future__ import annotations

from worker.kernel.bare import Any
from worker.runtime import devices
from worker.runtime.errors import SpecFault


class Write:
    """One file to write. ``optional``: a kernel without that file is no error. ``field``: where it came from.

    ``instead``: a (file, value) to write where the first file is not there.
    """

    __slots__ = ("controller", "field", "file", "instead", "optional", "value")

    def __init__(
        self,
        controller: str,
        file: str,
        value: str,
        field: str,
        optional: bool = False,
        instead: tuple[str, str] | None = None,
    ) -> None:
        self.controller = controller
        self.file = file
        self.value = value
        self.field = field
        self.optional = optional
        self.instead = instead

    def __repr__(self) -> str:
        return f"{self.file}={self.value}"


_V1 = (
    ("cpu", "shares", "cpu.shares"),
    ("cpu", "period", "cpu.cfs_period_us"),
    ("cpu", "quota", "cpu.cfs_quota_us"),
    ("cpu", "burst", "cpu.cfs_burst_us"),
    ("cpu", "realtimePeriod", "cpu.rt_period_us"),
    ("cpu", "realtimeRuntime", "cpu.rt_runtime_us"),
)
_CPUSET = (("cpus", "cpuset.cpus"), ("mems", "cpuset.mems"))
_THROTTLE = (
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)
_RDMA = (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object"))
Current = tuple[int | None, int | None]


def writes(resources: dict[str, Any], version: int, current: Current = (None, None), *, devices: bool = True) -> list[Write]:
    """``current``: (memory limit, memory+swap limit) of a v1 group in use, which decide the order. Raises SpecFault."""
    _check(resources)
    result = _v1(resources, current) if version == 1 else _v2(resources)
    if devices and version == 1:
        result = _devices(resources.get("devices") or []) + result
    return result


File = tuple[str, str, list[str], str, bool, tuple[str, str] | None]
"""controller, file, what to write into it, each by itself; the others as in ``Write``."""


def files(entries: list[Write]) -> list[File]:
    """The same, file by file: device rules are many, for one."""
    result: list[File] = []
    for entry in entries:
        if result and result[-1][:2] == (entry.controller, entry.file):
            result[-1][2].append(entry.value)
        else:
            result.append((entry.controller, entry.file, [entry.value], entry.field, entry.optional, entry.instead))
    return result


def _check(resources: dict[str, Any]) -> None:
    cpu = resources.get("cpu") or {}
    if cpu.get("burst") and (cpu.get("quota") or 0) > 0 and cpu["burst"] > cpu["quota"]:
        raise SpecFault("linux.resources.cpu.burst", f"{cpu['burst']} is above quota {cpu['quota']}")
    for entry in (resources.get("blockIO") or {}).get("weightDevice") or []:
        if not entry.get("weight") and not entry.get("leafWeight"):
            raise SpecFault("linux.resources.blockIO.weightDevice", "needs weight or leafWeight")
    for entry in resources.get("hugepageLimits") or []:
        if not _is_page_size(str(entry.get("pageSize"))):
            raise SpecFault("linux.resources.hugepageLimits.pageSize", f"{entry.get('pageSize')!r} is not a size such as 2MB")
    for device, entry in (resources.get("rdma") or {}).items():
        if entry.get("hcaHandles") is None and entry.get("hcaObjects") is None:
            raise SpecFault(f"linux.resources.rdma.{device}", "needs hcaHandles or hcaObjects")


def _is_page_size(text: str) -> bool:
    number, unit = text[:-2], text[-2:]
    return unit in ("KB", "MB", "GB") and number.isascii() and number.isdigit() and number[0] != "0"


def _cannot(field: str, version: int) -> SpecFault:
    return SpecFault(f"linux.resources.{field}", f"cgroup v{version}, which this machine uses, has nothing like it")


def _devices(rules: list[dict[str, Any]]) -> list[Write]:
    """Without what an earlier rule allows already."""
    result: list[Write] = []
    allowed: set[str] = set()
    for entry in device_rules(rules):
        text = devices.rule(entry)
        if not entry.get("allow"):
            allowed.clear()
        elif text in allowed:
            continue
        else:
            allowed.add(text)
        result.append(Write("devices", "devices.allow" if entry.get("allow") else "devices.deny", text, "devices"))
    return result


def device_rules(rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rules in their order, as a later one overrules an earlier one; what default devices need follows "deny all"."""
    result: list[dict[str, Any]] = []
    for entry in rules:
        result += devices.single_rules(entry)
        if not entry.get("allow") and devices.rule(result[-1]) == "a":
            result += devices.ALWAYS_ALLOWED
    return result


def _pids(resources: dict[str, Any]) -> list[Write]:
    limit = (resources.get("pids") or {}).get("limit")
    if limit is None:
        return []
    return [Write("pids", "pids.max", str(limit) if limit > 0 else "max", "pids.limit", optional=limit <= 0)]


def _v1(resources: dict[str, Any], current: Current) -> list[Write]:
    if resources.get("unified"):
        raise SpecFault("linux.resources.unified", "names files of cgroup v2, and this machine uses v1")
    result = []
    cpu = resources.get("cpu") or {}
    for controller, key, file in _V1:
        if cpu.get(key):
            result.append(Write(controller, file, str(cpu[key]), f"cpu.{key}"))
    if cpu.get("idle") is not None:
        result.append(Write("cpu", "cpu.idle", str(cpu["idle"]), "cpu.idle", optional=not cpu["idle"]))
    for key, file in _CPUSET:
        if cpu.get(key):
            result.append(Write("cpuset", file, cpu[key], f"cpu.{key}"))
    result += _v1_memory(resources.get("memory") or {}, current) + _pids(resources)
    result += _v1_block(resources.get("blockIO") or {})
    for entry in resources.get("hugepageLimits") or []:
        file, value = f"hugetlb.{entry['pageSize']}", str(entry["limit"])
        result.append(Write("hugetlb", f"{file}.limit_in_bytes", value, "hugepageLimits"))
        result.append(Write("hugetlb", f"{file}.rsvd.limit_in_bytes", value, "hugepageLimits", optional=True))
    network = resources.get("network") or {}
    if network.get("classID") is not None:
        result.append(Write("net_cls", "net_cls.classid", str(network["classID"]), "network.classID"))
    for entry in network.get("priorities") or []:
        value = f"{entry['name']} {entry['priority']}"
        result.append(Write("net_prio", "net_prio.ifpriomap", value, "network.priorities"))
    return result + _rdma(resources)


def _rdma(resources: dict[str, Any]) -> list[Write]:
    result = []
    for device, entry in (resources.get("rdma") or {}).items():
        words = [f"{name}={entry[key]}" for key, name in _RDMA if entry.get(key) is not None]
        result.append(Write("rdma", "rdma.max", " ".join([device, *words]), f"rdma.{device}"))
    return result


def _v1_block(block: dict[str, Any]) -> list[Write]:
    """Weights went with the CFQ scheduler (Linux 5.0); where BFQ is, its own file takes them, otherwise none does."""
    result = []
    if block.get("weight"):
        old = ("blkio.weight", str(block["weight"]))
        result.append(Write("blkio", "blkio.bfq.weight", str(block["weight"]), "blockIO.weight", True, old))
    if block.get("leafWeight"):
        result.append(Write("blkio", "blkio.leaf_weight", str(block["leafWeight"]), "blockIO.leafWeight", True))
    for entry in block.get("weightDevice") or []:
        device = f"{entry['major']}:{entry['minor']}"
        if entry.get("weight"):
            value = f"{device} {entry['weight']}"
            old = ("blkio.weight_device", value)
            result.append(Write("blkio", "blkio.bfq.weight_device", value, "blockIO.weightDevice", True, old))
        if entry.get("leafWeight"):
            value = f"{device} {entry['leafWeight']}"
            result.append(Write("blkio", "blkio.leaf_weight_device", value, "blockIO.weightDevice", True))
    for key, file, _ in _THROTTLE:
        for entry in block.get(key) or []:
            value = f"{entry['major']}:{entry['minor']} {entry['rate']}"
            result.append(Write("blkio", file, value, f"blockIO.{key}"))
    return result


def _v1_memory(memory: dict[str, Any], current: Current) -> list[Write]:
    limit, swap = memory.get("limit"), memory.get("swap")
    result = []
    if limit:
        result.append(Write("memory", "memory.limit_in_bytes", str(limit), "memory.limit"))
    if swap:
        if swap > 0 and limit and limit > 0 and swap < limit:
            raise SpecFault("linux.resources.memory.swap", f"{swap} is below memory.limit {limit}, which it includes")
        both = Write("memory", "memory.memsw.limit_in_bytes", str(swap), "memory.swap")
        # The kernel keeps memory <= memory+swap at every moment: when growing, the sum goes first.
        grows = current[1] is not None and (swap < 0 or swap > current[1])
        result.insert(0 if grows else len(result), both)
    for key, file in (("reservation", "memory.soft_limit_in_bytes"), ("swappiness", "memory.swappiness")):
        if memory.get(key) is not None and (memory[key] or key == "swappiness"):
            result.append(Write("memory", file, str(memory[key]), f"memory.{key}"))
    if memory.get("disableOOMKiller"):
        result.append(Write("memory", "memory.oom_control", "1", "memory.disableOOMKiller"))
    return result


def _v2(resources: dict[str, Any]) -> list[Write]:
    cpu, memory = resources.get("cpu") or {}, resources.get("memory") or {}
    for field, value in (
        ("cpu.realtimeRuntime", cpu.get("realtimeRuntime")),
        ("cpu.realtimePeriod", cpu.get("realtimePeriod")),
        ("memory.disableOOMKiller", memory.get("disableOOMKiller")),
        ("memory.swappiness", memory.get("swappiness") is not None),
        ("network", resources.get("network")),
    ):
        if value:
            raise _cannot(field, 2)
    result = _v2_cpu(cpu) + _v2_memory(memory) + _pids(resources) + _v2_block(resources.get("blockIO") or {})
    for entry in resources.get("hugepageLimits") or []:
        file, value = f"hugetlb.{entry['pageSize']}", str(entry["limit"])
        result.append(Write("hugetlb", f"{file}.max", value, "hugepageLimits"))
        result.append(Write("hugetlb", f"{file}.rsvd.max", value, "hugepageLimits", optional=True))
    result += _rdma(resources)
    for file, value in (resources.get("unified") or {}).items():
        if "/" in file or not isinstance(value, str):
            raise SpecFault(f"linux.resources.unified.{file}", "is not the name of a file with a text")
        # Such a file takes one line a write (io.max: one device).
        result += [Write(file.split(".")[0], file, line, f"unified.{file}") for line in value.split("\n") if line]
    return result


def _v2_cpu(cpu: dict[str, Any]) -> list[Write]:
    result = []
    if cpu.get("shares") and not cpu.get("idle"):
        # An idle group has the least weight there is, and the kernel takes no other for it.
        weight = 1 + (max(cpu["shares"], 2) - 2) * 9999 // 262142
        result.append(Write("cpu", "cpu.weight", str(weight), "cpu.shares"))
    if cpu.get("quota") or cpu.get("period"):
        quota = cpu.get("quota") or -1
        value = f"{quota if quota > 0 else 'max'} {cpu.get('period') or 100000}"
        result.append(Write("cpu", "cpu.max", value, "cpu.quota"))
    if cpu.get("burst"):
        result.append(Write("cpu", "cpu.max.burst", str(cpu["burst"]), "cpu.burst"))
    if cpu.get("idle") is not None:
        result.append(Write("cpu", "cpu.idle", str(cpu["idle"]), "cpu.idle", optional=not cpu["idle"]))
    for key, file in _CPUSET:
        if cpu.get(key):
            result.append(Write("cpuset", file, cpu[key], f"cpu.{key}"))
    return result


def _v2_block(block: dict[str, Any]) -> list[Write]:
    """BFQ's weights are v1's (1 to 1000 of it); io.weight's range is 1 to 10000 (cost model), so 10-1000 is stretched."""
    result = []
    weights = [("", block.get("weight"), "blockIO.weight")]
    weights += [
        (f"{e['major']}:{e['minor']} ", e.get("weight"), "blockIO.weightDevice") for e in block.get("weightDevice") or []
    ]
    for device, weight, field in weights:
        if weight:
            stretched = 1 + (max(weight, 10) - 10) * 9999 // 990
            instead = ("io.weight", f"{device}{stretched}")
            result.append(Write("io", "io.bfq.weight", f"{device}{weight}", field, True, instead))
    for key, _, name in _THROTTLE:
        for entry in block.get(key) or []:
            value = f"{entry['major']}:{entry['minor']} {name}={entry['rate']}"
            result.append(Write("io", "io.max", value, f"blockIO.{key}"))
    return result


def _v2_memory(memory: dict[str, Any]) -> list[Write]:
    limit, swap = memory.get("limit"), memory.get("swap")
    result = []
    if swap:
        if swap > 0:
            if not limit or limit < 0:
                raise SpecFault("linux.resources.memory.swap", "needs memory.limit, which it includes")
            if swap < limit:
                raise SpecFault("linux.resources.memory.swap", f"{swap} is below memory.limit {limit}, which it includes")
        value = str(swap - limit) if swap > 0 else "max"
        result.append(Write("memory", "memory.swap.max", value, "memory.swap", optional=True))
    if limit:
        result.append(Write("memory", "memory.max", str(limit) if limit > 0 else "max", "memory.limit"))
    if memory.get("reservation"):
        result.append(Write("memory", "memory.low", str(memory["reservation"]), "memory.reservation"))
    return result
