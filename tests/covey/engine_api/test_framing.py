"""Docker's stream frames and JSON lines, whatever the pieces they arrive in."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.engine_api import framing
from covey.engine_api.framing import Decoder, Frame, FramingError, Lines

frames = st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=40)), max_size=8)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


@settings(max_examples=100, deadline=None)
@given(frames, st.lists(st.integers(0, 500), max_size=10))
def test_frames_survive_any_cut(wanted, cuts):
    data = b"".join(framing.encode(*frame) for frame in wanted)
    decoder = Decoder()
    got = [frame for piece in pieces(data, cuts) for frame in decoder.feed(piece)]
    assert got == [Frame(*frame) for frame in wanted]
    assert decoder.pending == 0


def test_head_is_dockers():
    assert framing.encode(2, b"ab") == b"\x02\0\0\0\0\0\0\x02ab"
    assert Decoder().feed(b"\0\0\0\0\0\0\0\0") == [Frame(0, b"")]


def test_cut_stream_shows_as_pending():
    decoder = Decoder()
    assert decoder.feed(framing.encode(1, b"hello")[:-1]) == []
    assert decoder.pending == 12


@pytest.mark.parametrize("data", [b"hello world", b"\x01\0\0\x01\0\0\0\0", b"\x01\0\0\0\xff\xff\xff\xff"])
def test_other_bytes_are_refused(data):
    with pytest.raises(FramingError):
        Decoder().feed(data)


@pytest.mark.parametrize(
    ("version", "tty", "kind"),
    [("1.41", False, framing.RAW), ("1.42", False, framing.MULTIPLEXED), ("1.52", True, framing.RAW)],
)
def test_media_type(version, tty, kind):
    assert framing.content_type(version, tty) == kind


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5)), max_size=5), st.lists(st.integers(0, 99)))
def test_lines_survive_any_cut(values, cuts):
    lines = Lines()
    data = b"".join(framing.line(value) for value in values)
    assert [value for piece in pieces(data, cuts) for value in lines.feed(piece)] + lines.end() == values


def test_lines_take_json_seq_and_a_last_line_without_end():
    lines = Lines()
    assert lines.feed(b'\x1e{"a":1}\n\r\n{"b"') == [{"a": 1}]
    assert lines.feed(b":2}") + lines.end() == [{"b": 2}]


def test_error_line_is_what_docker_clients_read():
    (value,) = Lines().feed(framing.error_line("no such image", 404))
    assert value == {"error": "no such image", "errorDetail": {"message": "no such image", "code": 404}}
