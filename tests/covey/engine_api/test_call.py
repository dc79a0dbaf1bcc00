"""A call's query in Docker's semantics, its body, its filters."""

import pytest

from covey.engine_api.call import Call, parse_filters
from covey.engine_api.routes import BY_NAME
from covey.errors import InvalidArgument


async def body(*chunks):
    for chunk in chunks:
        yield chunk


def call(query=None, chunks=(), content_type="application/json", name="service_create"):
    headers = {"Content-Type": content_type} if content_type else {}
    return Call(BY_NAME[name], {}, "1.52", query=query or {}, headers=headers, chunks=body(*chunks))


@pytest.mark.parametrize("word", ["", "0", "false", "False", "no", "NONE", " 0 "])
def test_false_words(word):
    assert call({"all": word}).boolean("all", default=True) is False


@pytest.mark.parametrize("word", ["1", "true", "yes", "anything"])
def test_true_words(word):
    assert call({"all": word}).boolean("all") is True


def test_absent_flag_is_the_default():
    assert call().boolean("all") is False
    assert call().boolean("v", default=True) is True


def test_integer():
    assert call({"version": "12"}).required_integer("version") == 12
    assert call().integer("t") is None
    with pytest.raises(InvalidArgument, match="version"):
        call().required_integer("version")
    with pytest.raises(InvalidArgument, match="parameter t"):
        call({"t": "ten"}).integer("t")


@pytest.mark.parametrize("text", ['{"label":["a=b","c"]}', '{"label":{"a=b":true,"c":true}}'])
def test_both_shapes_of_filters(text):
    assert parse_filters(text, ("label",)) == {"label": ["a=b", "c"]}


def test_unknown_filter_is_refused_in_dockers_words():
    with pytest.raises(InvalidArgument) as error:
        parse_filters('{"colour":["red"]}', ("label",))
    assert error.value.message == "invalid filter 'colour'"


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"a":1}', '{"a":[1]}', "[" * 100_000])
def test_malformed_filters(text):
    with pytest.raises(InvalidArgument, match="invalid filter"):
        parse_filters(text)


@pytest.mark.asyncio
async def test_json_object():
    assert await call(chunks=[b'{"a"', b":1}"]).json() == {"a": 1}
    assert await call(content_type="application/json; charset=utf-8", chunks=[b"{}"]).json() == {}
    assert await call(content_type="").json(required=False) == {}
    assert await call(content_type="text/plain").json(required=False) == {}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("content_type", "text", "words"),
    [
        ("text/plain", b"{}", r"unsupported Content-Type header \(text/plain\): must be 'application/json'"),
        ("", b"{}", "unsupported Content-Type"),
        ("application/json", b"", "got EOF while reading request body"),
        ("application/json", b"{", "invalid JSON"),
        ("application/json", b"{} {}", "invalid JSON"),
        ("application/json", b"[]", "expected an object"),
        ("application/json", b'{"a":"\xff"}', "invalid JSON"),
        ("application/json", b'{"a":' * 50_000, "invalid JSON"),
        ("application/json", b" " * 5_000_000, "larger than"),
    ],
)
async def test_bad_bodies(content_type, text, words):
    with pytest.raises(InvalidArgument, match=words):
        await call(content_type=content_type, chunks=[text]).json()


@pytest.mark.asyncio
async def test_json_as_a_model_names_the_field():
    from covey.engine_api.types.service import ServiceSpec

    with pytest.raises(InvalidArgument, match=r"^TaskTemplate\.ContainerSpec\.Env: must be a list$"):
        await call(chunks=[b'{"TaskTemplate":{"ContainerSpec":{"Env":"x"}}}']).json(ServiceSpec)
