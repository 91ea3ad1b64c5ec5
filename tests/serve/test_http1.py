"""HTTP/1.1 of the proxy: what it reads strictly, and requests that one connection carries."""

import json
import socket
import time
from contextlib import closing

import pytest

from pipeline.serve.proxy.http1 import AnswerReader, Request, RequestReader
from pipeline.serve.proxy.limits import DEFAULT_LIMITS
from pipeline.serve.proxy.request_checks import RefusedRequestError
from pipeline.serve.triton.server import TritonServer

BODY = json.dumps(
    {"inputs": [{"name": "item_id", "shape": [1, 1], "datatype": "BYTES", "data": ["sku-00001"]}]}
).encode()
INFER = b"POST /v2/models/recommender/infer HTTP/1.1\r\nHost: x\r\n"


def read(content: bytes, step: int) -> list[Request]:
    """Requests of a connection on which the bytes come in pieces."""
    reader = RequestReader()
    requests = []
    for start in range(0, len(content), step):
        reader.received += content[start : start + step]
        while reader.request is not None or reader.read_head() is not None:
            request = reader.read_body()
            if request is None:
                break
            requests.append(request)
    return requests


@pytest.mark.parametrize("step", [1, 3, 1_000])
def test_requests_are_cut_wherever_their_bytes_are_split(step: int) -> None:
    content = (
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
        b"POST /a HTTP/1.1\r\nContent-Length: 3\r\nX-Name:  a b \t\r\n\r\nabc\r\n"
        b"POST /b HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n"
        b"2\r\nab\r\n0A ;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
        b"HEAD /c HTTP/1.0\r\n\r\n"
    )
    requests = read(content, step)
    assert [(r.method, r.path, r.body) for r in requests] == [
        (b"GET", b"/v2", b""),
        (b"POST", b"/a", b"abc"),
        (b"POST", b"/b", b"ab0123456789"),
        (b"HEAD", b"/c", b""),
    ]
    assert [r.closes for r in requests] == [False, False, False, True]
    assert requests[1].write(b"longer", frozenset([b"x-name"]), [b"x: y"]) == (
        b"POST /a HTTP/1.1\r\nx: y\r\ncontent-length: 6\r\n\r\nlonger"
    )
    assert requests[2].write(b"", frozenset(), []) == (
        b"POST /b HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GET http://x/v2 HTTP/1.1\r\n\r\n", "first line"),
        (b"GET /v2 HTTP/2.0\r\n\r\n", "first line"),
        (b"GET /v2  HTTP/1.1\r\n\r\n", "first line"),
        (b"GET /v2 HTTP/1.1\nHost: x\r\n\r\n", "first line"),
        (b"GET /v2 HTTP/1.1\r\nHost : x\r\n\r\n", "a header"),
        (b"GET /v2 HTTP/1.1\r\nX: a\r\n b\r\n\r\n", "a header"),
        (b"GET /v2 HTTP/1.1\r\nX: a\nY: b\r\n\r\n", "a header"),
        (b"GET /v2 HTTP/1.1\r\nX: a\0\r\n\r\n", "a header"),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: +3\r\n\r\n", "one whole number"),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n", "one whole number"),
        (b"POST /v2 HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", "one whole"),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "chunked alone"),
        (
            b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            "chunked alone",
        ),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\n", "no size"),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\n", "no size"),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", "another size"),
        (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4000001\r\n", "more than"),
        (
            b"POST /v2 HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
            % (DEFAULT_LIMITS.max_body_bytes + 1),
            "more than",
        ),
        (
            b"GET /v2 HTTP/1.1\r\nX: " + b"a" * DEFAULT_LIMITS.max_head_bytes,
            "the headers have more than",
        ),
        (b"GET /v2 HTTP/1.1\r\n" + b"X: a\r\n" * 201 + b"\r\n", "more than 200 headers"),
        (
            b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 10_001,
            "more than 10000 chunks",
        ),
    ],
)
def test_request_that_two_servers_could_read_differently_is_refused(
    content: bytes, words: str
) -> None:
    with pytest.raises(RefusedRequestError, match=words):
        read(content, len(content))


@pytest.mark.parametrize("step", [1, 7, 1_000])
def test_reader_sees_the_end_of_an_answer(step: int) -> None:
    answers = {
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello": True,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n": True,
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno": False,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n": False,
    }
    for content, can_continue in answers.items():
        reader = AnswerReader(b"GET")
        parts = []
        for start in range(0, len(content), step):
            assert not reader.is_done
            parts.append(reader.feed(content[start : start + step]))
        assert b"".join(parts) == content
        assert (reader.is_done, reader.can_continue) == (True, can_continue)


def exchange(server: TritonServer, *parts: bytes) -> bytes:
    """What a connection answers until it is closed."""
    host, port = server.http_url.split(":")
    with closing(socket.create_connection((host, int(port)), 20)) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_requests_in_a_row_are_answered_in_their_order(server: TritonServer) -> None:
    wrong = b"Content-Length: 5\r\n\r\nwrong"
    right = b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    last = b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = exchange(server, (INFER + wrong) + (INFER + right) * 2 + (INFER + wrong) + last)
    heads = [line for line in answer.split(b"\r\n") if b"HTTP/1.1" in line]
    codes = [head[head.index(b"HTTP/1.1") :].split()[1] for head in heads]
    assert codes == [b"400", b"200", b"200", b"400", b"200"]
    assert answer.count(b"is not JSON") == 2
    assert answer.count(b'"item_ids"') == 2


def test_client_that_waits_for_a_word_gets_it(server: TritonServer) -> None:
    headers = b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    answer = exchange(server, INFER + headers, BODY)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert b'"item_ids"' in answer


def test_connection_ends_after_a_request_whose_end_is_unknown(server: TritonServer) -> None:
    answer = exchange(server, INFER + b"Content-Length: x\r\n\r\nGET /v2 HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_head_of_an_answer_alone_comes_for_head(server: TritonServer) -> None:
    """Triton sends a body as well, which would be the beginning of the next answer."""
    first = b"HEAD /v2 HTTP/1.1\r\n\r\n"
    answer = exchange(server, first, b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.index(b"HTTP/1.1 200 OK") == answer.index(b"\r\n\r\n") + 4
