"""The line is read as runc reads it, and a little more freely."""

from __future__ import annotations

import pytest

from worker.runtime.command.arguments import VERBS, UsageError, help_text, parse


def test_podmans_create():
    """conmon's order: bundle and pid file, then what podman adds, the console, the id last."""
    line = "--log-format=json --log=/run/x/oci-log create --bundle /b --pid-file /p --no-pivot --console-socket /s ID"
    parsed = parse(line.split())
    assert parsed.verb == "create"
    assert (parsed.globals["log_format"], parsed.globals["log"]) == ("json", "/run/x/oci-log")
    assert parsed.options["bundle"] == "/b"
    assert parsed.options["console_socket"] == "/s"
    assert parsed.options["no_pivot"] is True
    assert parsed.options["preserve_fds"] == 0
    assert parsed.operands == {"id": "ID"}


@pytest.mark.parametrize(
    "line",
    [
        "--root /r kill --all ID 9",
        "--root /r kill ID 9 --all",
        "-root=/r kill -all=true ID 9",
        "--root /r kill ID --all 9",
        "--root /r kill -a -- ID 9",
    ],
)
def test_options_may_stand_anywhere(line):
    parsed = parse(line.split())
    assert parsed.globals["root"] == "/r"
    assert parsed.options["all"] is True
    assert parsed.operands == {"id": "ID", "signal": "9"}


def test_an_exec_keeps_the_programs_options():
    parsed = parse(["exec", "-t", "--env", "A=1", "-e", "B=2", "ID", "ls", "-l", "--help", "--env", "C=3"])
    assert parsed.options["tty"] is True
    assert parsed.options["env"] == ["A=1", "B=2"]
    assert parsed.operands == {"id": "ID", "command": ["ls", "-l", "--help", "--env", "C=3"]}
    assert parse(["exec", "ID", "--", "ls"]).operands["command"] == ["--", "ls"]


def test_negative_numbers_are_values():
    assert parse(["update", "--memory-swap", "-1", "ID"]).options["memory_swap"] == "-1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("frobnicate", "not a command"),
        ("create", "needs the container's id"),
        ("create --bundle", "needs a value"),
        ("create --nope ID", "--nope is unknown"),
        ("create --preserve-fds x ID", "not a number"),
        ("start ID other", "does not take 'other'"),
        ("--debug=perhaps list", "neither true nor false"),
    ],
)
def test_errors_say_what_is_wrong(line, words):
    with pytest.raises(UsageError, match=words):
        parse(line.split())


def test_help_names_every_option():
    assert all(f"  {verb} " in help_text("") for verb in VERBS)
    for name, verb in VERBS.items():
        text = help_text(name)
        assert all(f"--{option.names[0]}" in text for option in verb.options)
    assert parse(["run", "--help"]).help
    assert parse(["help"]).help
