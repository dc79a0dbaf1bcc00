"""PURE: the command line as a table of verbs and options, and its parser.

It is runc's line, read as runc reads it: ``--name value``, ``--name=value``, ``-name``, ``-n value``, flags that may be
``--flag=false``, global options before the verb. Beyond runc, options may also stand after the id, except where the rest
belongs to a program (exec, ps). A table and 60 lines instead of argparse, whose import alone costs more than ``state`` does.
Nothing here knows what a verb does.
"""

from __future__ import annotations

from typing import Any


class UsageError(Exception):
    """The line cannot be read; the words say what to write instead."""


class Option:
    """kind: "flag", "text", "number" or "list" (may be given again). ``names``: the long one first."""

    __slots__ = ("help", "kind", "names")

    def __init__(self, names: str, kind: str, help: str) -> None:
        self.names = tuple(names.split())
        self.kind = kind
        self.help = help

    @property
    def key(self) -> str:
        return self.names[0].replace("-", "_")

    @property
    def initial(self) -> Any:
        return {"flag": False, "text": "", "number": 0, "list": []}[self.kind]


class Verb:
    """``operands``: names of what stands beside options; [x] may be absent, x... takes the rest of the line as it is."""

    __slots__ = ("help", "operands", "options")

    def __init__(self, help: str, operands: str, options: tuple[Option, ...] = ()) -> None:
        self.help = help
        self.operands = tuple(operands.split())
        self.options = options


GLOBAL = (
    Option("root", "text", "directory of the containers' states (default /run/covey-runtime, or below $XDG_RUNTIME_DIR)"),
    Option("log", "text", "file that errors are appended to"),
    Option("log-format", "text", "form of the log: text (default) or json"),
    Option("log-level", "text", "debug, info, warn or error (default info)"),
    Option("debug", "flag", "log what is done, not only what fails"),
    Option("systemd-cgroup", "flag", "not possible here: use --cgroup-manager cgroupfs"),
    Option("cgroup-manager", "text", "cgroupfs, the only one"),
    Option("rootless", "text", "true, false or auto; taken for runc's sake"),
    Option("help h", "flag", "show this"),
    Option("version v", "flag", "show the version"),
)

_CONSOLE = Option("console-socket", "text", "Unix socket that gets the terminal's descriptor")
_PID_FILE = Option("pid-file", "text", "file that gets the pid of the process")
_PRESERVE = Option("preserve-fds", "number", "how many descriptors from 3 on the process keeps, besides $LISTEN_FDS")
_DETACH = Option("detach d", "flag", "do not wait for the process")
_CREATE = (
    Option("bundle b", "text", "directory of config.json (default: the current one)"),
    Option("config f", "text", "another config file; what it names lies in the bundle still"),
    _CONSOLE,
    _PID_FILE,
    Option("no-pivot", "flag", "move the root instead of swapping it; for a root on a ramdisk, and weaker"),
    Option("no-new-keyring", "flag", "keep the caller's session keyring"),
    _PRESERVE,
)
_FORMAT = Option("format f", "text", "table (default) or json")

VERBS: dict[str, Verb] = {
    "create": Verb("make a container, up to where its program waits to be started", "id", _CREATE),
    "start": Verb("start the program of a created container", "id"),
    "run": Verb(
        "create, start, wait and delete",
        "id",
        (
            *_CREATE,
            _DETACH,
            Option("keep", "flag", "do not delete the container when its process has ended"),
            Option("no-subreaper", "flag", "do not adopt orphans of the container"),
        ),
    ),
    "state": Verb("print a container's state as JSON", "id"),
    "kill": Verb("send a signal (default TERM) to a container", "id [signal]", (Option("all a", "flag", "to every process"),)),
    "delete": Verb(
        "remove a stopped container",
        "id",
        (Option("force f", "flag", "kill it first if it runs"), Option("regex r", "flag", "id is a pattern: all that match")),
    ),
    "list": Verb("list the containers of --root", "", (_FORMAT, Option("quiet q", "flag", "ids only"))),
    "ps": Verb("list the processes of a container", "id options...", (_FORMAT,)),
    "pause": Verb("freeze a container's processes", "id"),
    "resume": Verb("let a paused container go on", "id"),
    "exec": Verb(
        "run one more process in a container",
        "id command...",
        (
            _CONSOLE,
            Option("cwd", "text", "working directory in the container"),
            Option("env e", "list", "NAME=value, more than once"),
            Option("tty t", "flag", "give it a terminal"),
            Option("user u", "text", "uid[:gid]"),
            Option("additional-gids g", "list", "another group, more than once"),
            Option("process p", "text", "file with the OCI process as JSON"),
            _DETACH,
            _PID_FILE,
            Option("process-label", "text", "SELinux label"),
            Option("apparmor", "text", "AppArmor profile"),
            Option("no-new-privs", "flag", "no new privileges"),
            Option("cap c", "list", "a capability more, more than once"),
            _PRESERVE,
            Option("cgroup", "list", "[controller:]path of an existing cgroup below the container's"),
            Option("ignore-paused", "flag", "also in a paused container"),
        ),
    ),
    "update": Verb(
        "change the limits of a container",
        "id",
        (
            Option("resources r", "text", "file with OCI linux.resources as JSON, or - for stdin; other options are ignored"),
            Option("blkio-weight", "text", "block I/O weight, 10 to 1000"),
            Option("cpu-period", "text", "microseconds"),
            Option("cpu-quota", "text", "microseconds a period, -1 for no limit"),
            Option("cpu-burst", "text", "microseconds"),
            Option("cpu-share", "text", "relative weight"),
            Option("cpu-rt-period", "text", "microseconds"),
            Option("cpu-rt-runtime", "text", "microseconds"),
            Option("cpu-idle", "text", "1: only when nobody else wants the processor"),
            Option("cpuset-cpus", "text", "processors, such as 0-1"),
            Option("cpuset-mems", "text", "memory nodes"),
            Option("memory", "text", "bytes, or with k, m, g; -1 for no limit"),
            Option("memory-reservation", "text", "bytes"),
            Option("memory-swap", "text", "bytes of memory and swap together; -1 for no limit"),
            Option("pids-limit", "text", "processes; -1 for no limit"),
        ),
    ),
    "events": Verb(
        "print statistics and out-of-memory events as JSON lines",
        "id",
        (Option("interval", "text", "such as 5s (default) or 500ms"), Option("stats", "flag", "statistics once, no waiting")),
    ),
    "spec": Verb(
        "write a config.json to start from",
        "",
        (
            Option("bundle b", "text", "directory to write it into (default: the current one)"),
            Option("rootless", "flag", "for a user namespace of the caller"),
        ),
    ),
    "features": Verb("print what this runtime can as JSON", ""),
}


class Arguments:
    """A line that was read. ``verb`` is "" for --help and --version alone; ``options`` by key, ``operands`` by name."""

    def __init__(self) -> None:
        self.verb = ""
        self.globals: dict[str, Any] = {option.key: option.initial for option in GLOBAL}
        self.options: dict[str, Any] = {}
        self.operands: dict[str, Any] = {}
        self.given: set[str] = set()
        self.help = False


def parse(line: list[str]) -> Arguments:
    """Raises UsageError."""
    result = Arguments()
    rest = _take_options(list(line), GLOBAL, result.globals, result.given, intermixed=False)
    result.help = result.globals["help"]
    if not rest:
        return result
    name = rest.pop(0)
    if name == "help":
        result.help = True
        return result
    if name not in VERBS:
        raise UsageError(f"{name!r} is not a command: one of {', '.join(VERBS)}")
    verb = result.verb = name
    table = VERBS[verb]
    result.options = {option.key: option.initial for option in table.options}
    options = (*table.options, Option("help h", "flag", ""))
    result.options["help"] = False
    takes_rest = any(operand.endswith("...") for operand in table.operands)
    rest = _take_options(rest, options, result.options, result.given, intermixed=not takes_rest)
    result.help = result.help or result.options.pop("help")
    if not result.help:
        result.operands = _operands(verb, table, rest)
    return result


def _take_options(
    words: list[str], table: tuple[Option, ...], values: dict[str, Any], given: set[str], *, intermixed: bool
) -> list[str]:
    """Read options off ``words`` into ``values``; answers what is left, which ends them unless ``intermixed``."""
    known = {name: option for option in table for name in option.names}
    left: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return left + words
        if not word.startswith("-") or word == "-" or (left and word[1:].isdigit()):
            left.append(word)
            if intermixed:
                continue
            return left + words
        name, equals, value = word.lstrip("-").partition("=")
        option = known.get(name)
        if option is None:
            raise UsageError(f"option {word.partition('=')[0]} is unknown: --help lists them")
        given.add(option.key)
        if option.kind == "flag":
            values[option.key] = _flag(name, value) if equals else True
            continue
        if not equals:
            if not words:
                raise UsageError(f"option --{option.names[0]} needs a value")
            value = words.pop(0)
        if option.kind == "list":
            values[option.key] = [*values[option.key], value]
        elif option.kind == "number":
            if not value.isdigit():
                raise UsageError(f"option --{option.names[0]}: {value!r} is not a number")
            values[option.key] = int(value)
        else:
            values[option.key] = value
    return left


def _flag(name: str, value: str) -> bool:
    known = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}
    if value.lower() not in known:
        raise UsageError(f"option --{name}: {value!r} is neither true nor false")
    return known[value.lower()]


def _operands(verb: str, table: Verb, words: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for operand in table.operands:
        if operand.endswith("..."):
            result[operand[:-3]], words = words, []
        elif operand.startswith("["):
            result[operand[1:-1]] = words.pop(0) if words else None
        elif not words:
            raise UsageError(f"{verb} needs the container's {operand}: covey-runtime {verb} {' '.join(table.operands)}")
        else:
            result[operand] = words.pop(0)
    if words:
        raise UsageError(f"{verb} does not take {words[0]!r}: covey-runtime {verb} {' '.join(table.operands)}".rstrip())
    return result


def help_text(verb: str) -> str:
    """For --help: of a verb, or of the whole command when ``verb`` is empty."""
    if verb:
        table = VERBS[verb]
        head = f"covey-runtime {verb} [options] {' '.join(table.operands)}".rstrip()
        lines = [f"{head}\n\n{table.help}\n", *([] if not table.options else ["options:"])]
        return "\n".join([*lines, *(_option_help(option) for option in table.options)]) + "\n"
    lines = ["covey-runtime [global options] command [options] ...", "", "An OCI container runtime.", "", "commands:"]
    lines += [f"  {name:12}{entry.help}" for name, entry in VERBS.items()]
    lines += ["", "global options:", *(_option_help(option) for option in GLOBAL)]
    return "\n".join(lines) + "\n"


def _option_help(option: Option) -> str:
    names = ", ".join(f"--{name}" if len(name) > 1 else f"-{name}" for name in option.names)
    return f"  {names + ('' if option.kind == 'flag' else ' VALUE'):32}{option.help}"
