"""From bytes to one document: what YAML is taken, filled in, merged, and made absolute."""

import pytest

from cli.stack import files, interpolate, load, plan
from covey.errors import InvalidArgument

WEB = "services:\n  web:\n    image: i\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "line 1, column"),
        ("", "empty"),
        ("- a", "top level must be a mapping"),
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("on: 1", "put it in quotes"),
        ("a: &a [*a]", "alias that contains itself"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("? [a]\n: b", "a key is a list or a mapping"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper"),
    ],
)
def test_what_is_no_compose_file_is_refused_with_its_place(text, words):
    with pytest.raises(InvalidArgument, match=r"f\.yml") as caught:
        load.parse(text, "f.yml")
    assert words in caught.value.message


def test_aliases_that_explode_are_refused_before_they_do():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(InvalidArgument, match="aliases expand"):
        load.parse("\n".join(lines), "bomb.yml")


def test_merge_keys_and_numbers_as_keys():
    document = load.parse("x-a: &a {k: 1}\nb:\n  <<: *a\n  80: c\n", "f")
    assert document["b"] == {"k": 1, "80": "c"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("$A", "1"),
        ("${A}x", "1x"),
        ("$$A", "$A"),
        ("${B:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${A:+yes}", "yes"),
        ("${B:+yes}", ""),
        ("${B:-${A}}", "1"),
        ("${B-${C-deep}}", "deep"),
        ("${A:?why}", "1"),
    ],
)
def test_interpolation(text, filled):
    assert interpolate.interpolate({"k": [text]}, {"A": "1", "EMPTY": ""}, pytest.fail) == {"k": [filled]}
    assert interpolate.interpolate(interpolate.escape(text), {}, pytest.fail) == text


@pytest.mark.parametrize("text", ["${B:?say it}", "${A", "${}", "$", "${A!x}", "${B:-" * 20 + "}" * 20])
def test_interpolation_refused(text):
    with pytest.raises(InvalidArgument, match=r"services\.web\.image"):
        interpolate.interpolate({"services": {"web": {"image": text}}}, {"A": "1"}, lambda text: None)


def test_an_unset_variable_is_warned_of():
    said = []
    assert interpolate.fill("a${B}", {}, said.append, "") == "a"
    assert "B" in said[0]


def project(tmp_path, *texts, environ=None, warn=pytest.fail):
    paths = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.yml"
        path.write_text(text)
        paths.append(str(path))
    return files.load(paths, environ or {}, warn)


def test_later_files_go_over_earlier_ones(tmp_path):
    one = WEB + "    ports: ['80']\n    command: [a]\n    environment: {A: 1}\n"
    two = "services:\n  web:\n    image: j\n    ports: ['81']\n    command: [b]\n    environment: {B: 2}\n"
    web = project(tmp_path, one, two).services["web"]
    assert web == {"image": "j", "ports": ["80", "81"], "command": ["b"], "environment": {"A": 1, "B": 2}}


def test_the_env_file_beside_it_yields_to_the_environment(tmp_path):
    (tmp_path / ".env").write_text("# say\nTAG=file\nexport OTHER='quoted'\n")
    text = "services:\n  web:\n    image: i:$TAG-$OTHER\n"
    assert project(tmp_path, text).services["web"]["image"] == "i:file-quoted"
    assert project(tmp_path, text, environ={"TAG": "mine"}).services["web"]["image"] == "i:mine-quoted"


def test_env_files_of_a_service(tmp_path):
    (tmp_path / "a.env").write_text("A=1\nB=1\n")
    text = WEB + "    env_file: [a.env, {path: none.env, required: false}]\n    environment: [B=2, C]\n"
    assert files.service_environment(project(tmp_path, text, environ={"C": "3"}), "web") == {"A": "1", "B": "2", "C": "3"}
    with pytest.raises(InvalidArgument, match="cannot read env file"):
        files.service_environment(project(tmp_path, WEB + "    env_file: none.env\n"), "web")


def test_relative_binds_are_made_absolute_and_said(tmp_path):
    said = []
    text = WEB + "    volumes: [./html:/www:ro, data:/data]\nvolumes: {data: {}}\n"
    web = project(tmp_path, text, warn=said.append).services["web"]
    assert web["volumes"] == [f"{tmp_path}/html:/www:ro", "data:/data"]
    assert "every node" in said[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("networks: {a: {}}", "at least one service"),
        (WEB + "    networks: [nope]\n", "services.web.networks: 'nope' is not declared"),
        (WEB + "    secrets: [nope]\n", "services.web.secrets.0: the secret 'nope' is not declared"),
        (WEB + "    volumes: ['nope:/data']\n", "services.web.volumes.0: the volume 'nope' is not declared"),
        (WEB + "secrets: {s: {}}\n", "secrets.s: give one of file, environment, content"),
        (WEB + "secrets: {s: {file: none}}\n", "secrets.s.file: cannot read"),
        (WEB + "configs: {c: {environment: NONE}}\n", "configs.c.environment: the variable NONE is not set"),
        (WEB + "    networks: [n]\nnetworks: {n: {external: true, driver: x}}\n", "networks.n.driver"),
        (WEB + "    networks: [n]\nnetworks: {n: {ipam: {config: [{sub: x}]}}}\n", "unknown key networks.n.ipam.config.sub"),
        ("services: {web: {build: .}}", "services.web.image is missing"),
        ("services: {'we b': {image: i}}", "services.we b: invalid name"),
    ],
)
def test_what_cannot_be_is_found_before_anything_is_made(tmp_path, text, words):
    with pytest.raises(InvalidArgument) as caught:
        plan.make("s", project(tmp_path, text, warn=lambda text: None))
    assert words in caught.value.message


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 64, "_a"])
def test_invalid_stack_names(name):
    with pytest.raises(InvalidArgument, match="invalid stack name"):
        plan.check_stack_name(name)


def test_networks_that_no_service_uses_are_not_made(tmp_path):
    text = WEB + "    networks: [a, e]\nnetworks:\n  a: {labels: [k=v]}\n  b: {}\n  e: {external: true, name: there}\n"
    made = plan.make("s", project(tmp_path, text))
    assert made.networks["there"] is None
    assert set(made.networks) == {"s_a", "there"}
    assert made.networks["s_a"]["Labels"] == {"k": "v", "com.docker.stack.namespace": "s"}
    assert made.networks["s_a"]["Driver"] == "overlay"
    targets = [one["Target"] for one in made.services({})["s_web"]["TaskTemplate"]["Networks"]]
    assert targets == ["s_a", "there"]


def test_a_service_without_networks_joins_the_default(tmp_path):
    assert list(plan.make("s", project(tmp_path, WEB)).networks) == ["s_default"]
