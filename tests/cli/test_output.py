"""What people see: ages, sizes, tables, templates, and the text of options."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from cli import moments, output, publish, words
from cli.connection import filters
from cli.mounts import parse_mount
from cli.templates import Template
from covey.errors import InvalidArgument


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (120, "2 minutes"),
        (3599, "59 minutes"), (3600, "About an hour"), (7200, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"), (61 * 86400, "2 months"), (731 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_ages(seconds, text):
    assert output.age(seconds) == text


def test_times_of_the_api():
    now = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    assert output.since("2026-01-01T00:00:30.123456789Z", now) == "29 seconds ago"
    assert output.since(now.timestamp() - 7200, now + timedelta()) == "2 hours ago"
    assert output.since("0001-01-01T00:00:00Z") == ""
    assert output.since("garbage") == output.since(None) == ""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (999, "999B"), (1980000, "1.98MB"), (123456789, "123MB"), (999900, "1000kB")]
)
def test_sizes(count, text):
    assert output.size(count) == text


def test_a_table_is_as_wide_as_it_needs_and_nothing_steers_the_terminal():
    text = output.table(["A", "LONG"], [["x\x1b[2J", "y"], ["longer", ""]])
    assert text == "A        LONG\nx?[2J    y\nlonger"


LISTING = output.Listing({"NAME": "Name", "SIZE": "Size"}, quiet="Name")
ROWS = [{"Name": "a", "Size": 1, "Labels": {"k": "v"}}, {"Name": "b", "Size": 2, "Labels": {}}]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "NAME   SIZE\na      1\nb      2\n"),
        ({"quiet": True}, "a\nb\n"),
        ({"form": "{{.Name}}={{.Size}}"}, "a=1\nb=2\n"),
        ({"form": r"table {{.Size}}\t{{upper .Name}}"}, "SIZE   NAME\n1      A\n2      B\n"),
        ({"form": "{{json .Labels}}"}, '{"k":"v"}\n{}\n'),
    ],
)
def test_lists(capsys, options, text):
    LISTING.show(ROWS, **options)
    assert capsys.readouterr().out == text


def test_lists_as_json_lines(capsys):
    LISTING.show(ROWS, form="json")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_an_empty_list_shows_its_head_only(capsys):
    LISTING.show([])
    assert capsys.readouterr().out == "NAME   SIZE\n"


ITEM = {"State": {"Status": "running", "Pid": 0}, "Args": ["a", "b"], "Ok": True, "Labels": {"x.y": 1}}


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{.State.Status}}", "running"),
        ("{{ .State.Pid }}|{{.Ok}}", "0|true"),
        ("{{json .Args}}", '["a","b"]'),
        ("{{join .Args \"-\"}}", "a-b"),
        ("{{.Args}}", "[a b]"),
        ("{{len .Args}}", "2"),
        ("{{.State.Status | upper}}", "RUNNING"),
        ('{{index .Labels "x.y"}}', "1"),
        ("{{index .Args 1}}", "b"),
        ("{{.None.Deep}}", "<no value>"),
        (r"a\tb", "a\tb"),
    ],
)  # fmt: skip
def test_templates(text, rendered):
    if ".None" in text:
        with pytest.raises(InvalidArgument):
            Template(text).render(ITEM)
    else:
        assert Template(text).render(ITEM) == rendered


@pytest.mark.parametrize("text", ["{{range .Args}}x{{end}}", "{{.State", "{{}}", "{{if .Ok}}", '{{join "a" 1 2 3 4}}'])
def test_templates_refused(text):
    with pytest.raises(InvalidArgument, match="--format"):
        Template(text).render(ITEM)


def test_a_list_names_the_fields_it_has():
    with pytest.raises(InvalidArgument, match=r"no field Nmae.*known are Name, Size"):
        LISTING.show(ROWS, form="{{.Nmae}}")


def test_filters():
    assert json.loads(filters(["label=a=b", "label=c", "name=x"], service="s")) == {
        "label": {"a=b": True, "c": True}, "name": {"x": True}, "service": {"s": True},
    }  # fmt: skip
    assert filters(None) is None
    with pytest.raises(InvalidArgument, match="--filter key=value"):
        filters(["x"])


def test_times_of_options():
    assert moments.timestamp("10m", now=1000.0) == "400.000000000"
    assert moments.timestamp("1700000000") == "1700000000"
    assert moments.timestamp("1970-01-01T00:01:00Z") == "60.000000000"
    with pytest.raises(InvalidArgument):
        moments.timestamp("yesterday")


def test_words_that_contain_commas_are_quoted():
    assert words.fields('type=volume,"volume-opt=o=a,b",ro', "--mount") == [
        ("type", "volume"), ("volume-opt", "o=a,b"), ("ro", None),
    ]  # fmt: skip
    assert parse_mount('target=/a,"volume-opt=o=a,b"')["VolumeOptions"] == {"DriverConfig": {"Options": {"o": "a,b"}}}


@pytest.mark.parametrize(
    ("text", "key", "binding"),
    [
        ("80", "80/tcp", ("", "")),
        ("8080:80/udp", "80/udp", ("", "8080")),
        ("127.0.0.1:8080:80", "80/tcp", ("127.0.0.1", "8080")),
        ("127.0.0.1::80", "80/tcp", ("127.0.0.1", "")),
        ("[::1]:8080:80", "80/tcp", ("::1", "8080")),
        ("8000-8010:80", "80/tcp", ("", "8000-8010")),
    ],
)
def test_ports_of_a_container(text, key, binding):
    opened, bindings = publish.container_ports([text])
    assert opened == {key: {}}
    assert bindings == {key: [{"HostIp": binding[0], "HostPort": binding[1]}]}


def test_ranges_of_ports():
    assert sorted(publish.container_ports(["8000-8001:80-81"], ["90-91/udp"])[0]) == ["80/tcp", "81/tcp", "90/udp", "91/udp"]
    for wrong in ("a", "0:80", "80:70000", "1-2:3-5", "1.2.3:4:5", "80/icmp"):
        with pytest.raises(InvalidArgument, match="--publish"):
            publish.container_ports([wrong])
