"""The sans-io HTTP/1.1 reader: body kinds, switches, cuts."""

import pytest

from covey.engine_api import http1
from covey.engine_api.http1 import Answer, ProtocolError

BODIES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=1\r\nllo\r\n0\r\nTrailer: y\r\n\r\n",
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_bodies_in_any_pieces(kind, size):
    answer, data = Answer("GET"), BODIES[kind]
    body = b"".join(b"".join(answer.feed(data[at : at + size])) for at in range(0, len(data), size))
    assert (answer.status, body, answer.complete, answer.rest) == (200, b"hello", True, b"")


def test_body_until_close():
    answer = Answer("GET")
    assert answer.feed(b"HTTP/1.1 200 OK\r\n\r\nab") == [b"ab"]
    assert not answer.complete
    answer.end()
    assert answer.complete
    assert not answer.keep_alive


@pytest.mark.parametrize("start", [b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified"])
def test_no_body(start):
    answer = Answer("GET")
    answer.feed(start + b"\r\nContent-Length: 9\r\n\r\n")
    assert answer.complete


def test_head_has_no_body():
    answer = Answer("HEAD")
    answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    assert answer.complete


def test_upgrade_leaves_the_rest_raw():
    answer = Answer("POST")
    assert answer.feed(b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\nraw") == []
    assert (answer.status, answer.switched, answer.rest) == (101, True, b"raw")


def test_hijack_without_upgrade():
    assert Answer("POST", hijack=True).feed(b"HTTP/1.1 200 OK\r\n\r\nraw") == []
    answer = Answer("POST", hijack=True)
    answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert answer.complete
    assert not answer.switched


@pytest.mark.parametrize("kept", [5, 30, 42])
def test_a_cut_is_told(kept):
    answer = Answer("GET")
    answer.feed(BODIES["length"][:kept])
    with pytest.raises(ProtocolError, match="cut"):
        answer.end()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        b"x" * 300_000,
    ],
)
def test_nonsense_is_refused(data):
    with pytest.raises(ProtocolError):
        Answer("GET").feed(data)


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/a\n"])
def test_no_smuggling_in_a_request_head(path):
    with pytest.raises(ProtocolError):
        http1.request_head("GET", path, ())


def test_query_string():
    query = http1.query_string({"a": "x y&", "names": ["p/q:1", "ä"]})
    assert query == "a=x%20y%26&names=p/q:1&names=%C3%A4"
