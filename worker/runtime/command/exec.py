"""The verb exec: one more process in a container.

The process comes from a file (--process, as podman and containerd do) or is the container's own with the line's changes.
"""

from __future__ import annotations

import os
from typing import Any

from worker.runtime import birth, capabilities, launch, spec
from worker.runtime.cgroups import Cgroup
from worker.runtime.command import build, bundle, console, files, foreground
from worker.runtime.command.arguments import Arguments, UsageError
from worker.runtime.command.environment import listen_fds
from worker.runtime.command.outside import Outside
from worker.runtime.command.report import CommandError, Log
from worker.runtime.command.store import Entry, Store
from worker.runtime.init import Detachment
from worker.runtime.launch import Host
from worker.runtime.process import Launch
from worker.runtime.process import launch as fork

_ALLOWED = ("created", "running")


def exec(arguments: Arguments, log: Log) -> int:
    """Answers the process's exit code, or 0 at once when detached."""
    options = arguments.options
    entry = Store(arguments.globals["root"]).find(arguments.operands["id"])
    status = entry.status()
    if status == "paused" and not options["ignore_paused"]:
        raise CommandError(f"cannot exec in paused container {entry.ident!r}: resume it, or use --ignore-paused")
    if status not in (*_ALLOWED, "paused"):
        raise CommandError(f"cannot exec in container {entry.ident!r}, which is {status}")
    config = entry.config()
    process = _process(arguments, config)
    spec.check_process(process, "process")
    detached = options["detach"]
    console.check(terminal=bool(process.get("terminal")), detached=detached, console_socket=options["console_socket"])
    launched = _launch(entry, config, process, arguments, log)
    try:
        return _see_off(launched, arguments)
    except BaseException:
        if launched.phase != "started":
            launched.signal(9)
            os.waitpid(launched.pid, 0)
        raise
    finally:
        launched.channel.close()
        launched.close()


def _launch(entry: Entry, config: spec.Config, process: dict[str, Any], arguments: Arguments, log: Log) -> Launch:
    group = entry.group()
    host = Host(capabilities.held(), group.mounts(), _entrances(group, arguments.options["cgroup"]))
    # The filter is the container's, whatever the process.
    plan = launch.plan_exec(bundle.with_filter(config), process, host)
    plan.start = build.with_home(plan.start, process)
    for words in plan.warnings:
        log.warn(words)
    stdio = build.stdio_of(config, process, arguments.options["preserve_fds"] + listen_fds())
    build.prepare_process()
    born = birth.of_exec(process)
    launched = fork(born, lambda _: plan, stdio, group, entered_pid=entry.record["pid"], detachment=Detachment())
    launched.on_request = Outside(entry, config).answer(launched, "running", entry.record["pid"])
    return launched


def _see_off(launched: Launch, arguments: Arguments) -> int:
    """From the fork to the answer."""
    options = arguments.options
    build.follow(launched, "created")
    master = launched.console
    if master is not None and options["console_socket"]:
        console.send(options["console_socket"], master)
        os.close(master)
        master = None
    if options["detach"]:
        _start(launched, options["pid_file"])
        return 0
    with foreground.attended(launched.pid, launched.pidfd, master, adopt=False) as attended:
        _start(launched, options["pid_file"])
        return attended.wait()


def _start(launched: Launch, pid_file: str) -> None:
    if pid_file:
        build.write_pid(pid_file, launched.pid)
    launched.start()
    build.follow(launched, "started")


def _process(arguments: Arguments, config: spec.Config) -> dict[str, Any]:
    """The OCI process to run. Raises CommandError or UsageError."""
    options, command = arguments.options, arguments.operands["command"]
    if options["process"]:
        return files.json_object("--process", options["process"], "an OCI process object")
    if not command:
        raise UsageError("exec needs a command, or --process FILE: covey-runtime exec [options] id command...")
    process = {**config["process"], "args": command, "terminal": options["tty"]}
    process["env"] = [*(process.get("env") or []), *options["env"]]
    for key, option in (("cwd", "cwd"), ("apparmorProfile", "apparmor"), ("selinuxLabel", "process_label")):
        if options[option]:
            process[key] = options[option]
    if "no_new_privs" in arguments.given:
        process["noNewPrivileges"] = options["no_new_privs"]
    if options["cap"]:
        process["capabilities"] = _with_capabilities(process.get("capabilities") or {}, options["cap"])
    if options["user"] or options["additional_gids"]:
        process["user"] = _user(process.get("user") or {}, options["user"], options["additional_gids"])
    return process


def _with_capabilities(sets: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Never into the inheritable set, from which a program's file capabilities would raise it again (CVE-2022-29162)."""
    named = [name if name.startswith("CAP_") else f"CAP_{name}" for name in (word.upper() for word in names)]
    return {**sets, **{key: [*(sets.get(key) or []), *named] for key in ("bounding", "effective", "permitted")}}


def _user(user: dict[str, Any], word: str, groups: list[str]) -> dict[str, Any]:
    result = dict(user)
    uid, colon, gid = word.partition(":")
    try:
        if word:
            result["uid"] = int(uid)
        if colon:
            result["gid"] = int(gid)
        if groups:
            result["additionalGids"] = [int(group) for group in groups]
    except ValueError:
        raise UsageError("--user is uid[:gid] and --additional-gids a number: names are known to the image only") from None
    return result


def _entrances(group: Cgroup, wanted: list[str]) -> list[str]:
    """The files by which the process enters the container's cgroups, or those --cgroup names below them."""
    places: dict[str, str] = {}
    for word in wanted:
        controllers, colon, path = word.rpartition(":")
        if ".." in path.split("/"):
            raise UsageError(f"--cgroup {word!r} leads out of the container's cgroup")
        for name in controllers.split(",") if colon else [""]:
            places[name] = path.strip("/")
    if not places:
        return group.entrances()
    result = []
    for hierarchy, entrance in zip(group.hierarchies, group.entrances()):
        names = [name for name in hierarchy.controllers if name in places]
        place = places[names[0]] if names else places.get("", "")
        directory, _, file = entrance.rpartition("/")
        if not os.path.isdir(f"{directory}/{place}"):
            raise CommandError(f"--cgroup: there is no {directory}/{place}: the container has to make it first")
        result.append(os.path.normpath(f"{directory}/{place}/{file}"))
    return result
