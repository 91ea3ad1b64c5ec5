"""The log of requests: rows from bytes, bounded queue, whole files."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tritonclient.grpc
import tritonclient.http
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

from pipeline.core.errors import ConfigError
from pipeline.serve.client.client import Client
from pipeline.serve.proxy.session_names import session_fraction, session_of, session_of_message
from pipeline.serve.request_log import request_log as module
from pipeline.serve.request_log.exchange import MAX_ID_CHARACTERS, Exchange, read_rows
from pipeline.serve.request_log.files import FILE_PATTERN, SCHEMA, to_batch, write_file
from pipeline.serve.request_log.options import RequestLogOptions
from pipeline.serve.request_log.request_log import RequestLog
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from tests.conftest import ROOT, Shop
from tests.serve.test_fuzz import malformed

Ids = list[list[Any]]


def packed(values: Ids, kind: str) -> bytes:
    """Triton's binary form."""
    flat = [value for row in values for value in row]
    if kind != "BYTES":
        return np.array(flat, {"INT64": "<i8", "INT32": "<i4"}[kind]).tobytes()
    return b"".join(len(value).to_bytes(4, "little") + value for value in flat)


def http_body(tensors: dict[str, tuple[Ids, str]], key: str, binary: bool) -> tuple[bytes, int]:
    """Body and size of its JSON."""
    fields, tail = [], b""
    for name, (values, kind) in tensors.items():
        field: dict[str, Any] = {"name": name, "datatype": kind}
        field["shape"] = [len(values), len(values[0])]
        if binary:
            content = packed(values, kind)
            field["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            field["data"] = [[v.decode() if isinstance(v, bytes) else v for v in r] for r in values]
        fields.append(field)
    head = json.dumps({"model_name": "shop", "model_version": "7", key: fields}).encode()
    return head + tail, len(head)


def http_exchange(request: Any, answer: Any, *, binary: bool, **facts: Any) -> Exchange:
    content, length = http_body(request, "inputs", binary)
    body, answer_length = http_body(answer, "outputs", binary)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body)
    head += b"Inference-Header-Content-Length: %d\r\n" % answer_length if binary else b""
    whole = bytearray(head + b"\r\n" + body)
    return Exchange(
        "http", 5, None, content, json_length=length if binary else None, answer=whole, **facts
    )  # fmt: skip


def grpc_exchange(request: Any, answer: Any, *, binary: bool, **facts: Any) -> Exchange:
    messages: Any = (ModelInferRequest(), ModelInferResponse(model_name="shop", model_version="7"))
    for message, tensors in zip(messages, (request, answer), strict=True):
        is_request = message is messages[0]
        fields = message.inputs if is_request else message.outputs
        raw = message.raw_input_contents if is_request else message.raw_output_contents
        for name, (values, kind) in tensors.items():
            field = fields.add(name=name, datatype=kind, shape=[len(values), len(values[0])])
            if binary or not is_request:
                raw.append(packed(values, kind))
                continue
            typed = {"INT64": "int64_contents", "INT32": "int_contents", "BYTES": "bytes_contents"}
            getattr(field.contents, typed[kind]).extend(v for row in values for v in row)
    content = messages[1].SerializeToString()
    return Exchange(
        "grpc", 5, None, messages[0].SerializeToString(),
        answer=bytearray(b"\0" + len(content).to_bytes(4) + content), **facts,
    )  # fmt: skip


@pytest.mark.parametrize("exchange", [http_exchange, grpc_exchange])
@pytest.mark.parametrize("binary", [False, True])
def test_rows_hold_the_ids_of_each_session_in_every_encoding(exchange: Any, binary: bool) -> None:
    request = {
        "price": ([[7, 7, 7]] * 2, "INT64"),
        "item_id": ([[3, 1, 2], [9, 0, 0]], "INT64"),
        "length": ([[3], [1]], "INT32"),
        "session_id": ([[b"ann"], [b""]], "BYTES"),
    }
    answer = {
        "num_known": ([[3], [1]], "INT32"),
        "item_ids": ([[4, 5], [6, -(2**63)]], "INT64"),
    }
    rows = read_rows(exchange(request, answer, binary=binary))
    assert rows == [
        (5, "ann", "shop", 7, None, None, 2, ["3", "1", "2"], ["4", "5"]),
        (5, None, "shop", 7, None, None, 2, ["9"], ["6"]),
    ]


def test_flat_request_has_a_row_for_each_of_its_sessions() -> None:
    request = {
        "session_id": ([[5, 6, 5]], "INT64"),
        "item_id": ([[b"a", b"b", b"c"]], "BYTES"),
    }
    answer = {"item_ids": ([[b"x", b"y", b"z", b""]], "BYTES")}
    rows = read_rows(grpc_exchange(request, answer, binary=True))
    assert [(row.session, row.items, row.recommendations) for row in rows] == [
        ("5", ["a", "c"], ["x", "y"]), ("6", ["b"], ["z"])
    ]  # fmt: skip


def test_an_answer_with_another_number_of_lists_is_unreadable() -> None:
    request = {"item_id": ([[1], [2], [3], [4], [5]], "INT64")}
    answer = {"item_ids": ([[1, 2, 3, 4]] * 3, "INT64")}
    with pytest.raises(ValueError, match="another number of lists"):
        read_rows(grpc_exchange(request, answer, binary=True))


def test_answers_without_a_list_have_no_row() -> None:
    request = {"item_id": ([[1]], "INT64")}
    assert read_rows(grpc_exchange(request, {"embedding": ([[1]], "INT64")}, binary=True)) == []
    refused = http_exchange(request, {"item_ids": ([[1]], "INT64")}, binary=False)
    refused.answer = bytearray(b"HTTP/1.1 400 Bad Request\r\n\r\n{}")
    assert read_rows(refused) == []
    empty = grpc_exchange(request, {"item_ids": ([[1]], "INT64")}, binary=True)
    empty.answer = bytearray()
    assert read_rows(empty) == []
    # of a stream: an error, and a list
    for message in (
        ModelStreamInferResponse(error_message="no such model"),
        ModelStreamInferResponse(infer_response=ModelInferResponse(id="\x80\xff", model_name="a")),
    ):
        content = message.SerializeToString()
        empty.answer = bytearray(b"\0" + len(content).to_bytes(4) + content)
        assert read_rows(empty) == []


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=6),
    session=st.text(st.characters(), min_size=1, max_size=400),
)
def test_any_bytes_of_a_client_make_a_file_that_can_be_read(ids: list[bytes], session: str) -> None:
    exchange = grpc_exchange(
        {"item_id": ([ids], "BYTES")}, {"item_ids": ([ids], "BYTES")}, binary=True
    )
    exchange.session = session
    batch = to_batch(read_rows(exchange))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches([batch]), sink)
    [row] = pq.read_table(pa.BufferReader(sink.getvalue())).to_pylist()
    texts = [id_.decode("utf-8", "replace")[:MAX_ID_CHARACTERS].replace("\0", "") for id_ in ids]
    assert row["items"] == [text for text in texts if text]
    assert len(row["session"]) <= MAX_ID_CHARACTERS


def exchange_of(item: int, session: str | None = None) -> Exchange:
    ids = {"item_id": ([[item]], "INT64")}
    exchange = http_exchange(ids, {"item_ids": ([[item]], "INT64")}, binary=False)
    exchange.session = session
    return exchange


def logged(directory: Path) -> list[dict[str, Any]]:
    return [
        row for f in sorted(directory.glob(FILE_PATTERN)) for row in pq.read_table(f).to_pylist()
    ]


def test_files_are_rotated_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "log"
    log = RequestLog(RequestLogOptions(directory=directory, rotate_seconds=0.2))
    log.start()
    log.put(exchange_of(1))
    deadline = time.monotonic() + 20
    while not list(directory.glob(FILE_PATTERN)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    log.put(exchange_of(2))
    log.stop()
    assert sorted(row["items"] for row in logged(directory)) == [["1"], ["2"]]
    files = list(directory.iterdir())
    assert len(files) == 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert pq.read_schema(files[0]).remove_metadata() == SCHEMA


def test_a_large_file_is_written_before_its_time(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_ROWS_PER_BATCH", 10)
    log = RequestLog(RequestLogOptions(directory=tmp_path, rotate_bytes=1))
    for item in range(35):
        log.put(exchange_of(item))
    log.start()
    log.stop()
    sizes = sorted(pq.read_metadata(file).num_rows for file in tmp_path.glob(FILE_PATTERN))
    assert sizes == [5, 10, 10, 10]


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the log says."""
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(module.logger, level, lambda text, *a: lines.append(text % a))
    return lines


def test_full_queue_drops_and_counts(tmp_path: Path, messages: list[str]) -> None:
    log = RequestLog(RequestLogOptions(directory=tmp_path, max_queued=3))
    for item in range(10):
        log.put(exchange_of(item))
    log.start()
    log.stop()
    assert [row["items"] for row in logged(tmp_path)] == [["0"], ["1"], ["2"]]
    assert messages == ["Request log: 7 requests were not logged: the queue was full."]
    size = exchange_of(0).num_bytes
    log = RequestLog(RequestLogOptions(directory=tmp_path / "b", max_queued_bytes=2 * size))
    for _ in range(5):
        log.put(exchange_of(0))
    log.start()
    log.stop()
    assert len(logged(tmp_path / "b")) == 2


def test_full_disk_is_one_warning_until_it_is_over(
    tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS_PER_BATCH", 1)
    failures = iter([True, True, False, False])

    def write(*arguments: Any) -> int:
        if next(failures):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_file(*arguments)

    monkeypatch.setattr(module, "write_file", write)
    log = RequestLog(RequestLogOptions(directory=tmp_path, rotate_bytes=1))
    for item in range(4):
        log.put(exchange_of(item))
    log.start()
    log.stop()
    assert sorted(row["items"] for row in logged(tmp_path)) == [["2"], ["3"]]
    assert messages == [
        f"Warning: requests cannot be logged in {tmp_path}: No space left on device. The server "
        "continues.",
        f"Requests are logged in {tmp_path} again.",
        "Request log: 2 rows were lost: the file could not be written.",
    ]


def test_requests_of_another_form_are_counted_and_the_log_goes_on(tmp_path: Path) -> None:
    log = RequestLog(RequestLogOptions(directory=tmp_path))
    broken = exchange_of(1)
    broken.content = b'{"inputs": [{"name": "item_id", "datatype": "INT64"}]}'
    for exchange in (broken, exchange_of(2)):
        log.put(exchange)
    log.start()
    log.stop()
    assert [row["items"] for row in logged(tmp_path)] == [["2"]]
    assert sum(log.counts.values()) == 1


def test_sample_holds_all_requests_of_a_session_or_none(tmp_path: Path) -> None:
    log = RequestLog(RequestLogOptions(directory=tmp_path, share=0.1))
    sessions = [f"session-{i}" for i in range(20_000)]
    sample = [log.wants(session) for session in sessions]
    assert abs(sum(sample) - 2_000) < 4 * (20_000 * 0.1 * 0.9) ** 0.5
    again = RequestLog(RequestLogOptions(directory=tmp_path, share=0.1))
    assert [again.wants(session) for session in sessions] == sample
    assert 1_700 < sum(log.wants(None) for _ in range(20_000)) < 2_300


@pytest.mark.parametrize("share", [0.0, 1.1, -1.0, float("nan")])
def test_share_outside_its_range_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match="log-share"):
        RequestLogOptions(directory=tmp_path, share=share)


def test_directory_that_cannot_be_written_is_named_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        RequestLog(RequestLogOptions(directory=tmp_path / "file" / "log"))


def test_name_of_a_session_is_the_same_in_both_protocols() -> None:
    for value in ("ann", 42, "42", -(2**63)):
        request = ModelInferRequest()
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(request.parameters["session"], kind, value)
        name = session_of({"session": value})
        assert name == str(value) == session_of_message(request.parameters)
    for other in (None, True, 1.5, [], {}, ""):
        assert session_of({"session": other}) is None
    assert session_of(None) is session_of([]) is None
    assert session_of_message(ModelInferRequest().parameters) is None
    assert session_fraction("a", "\ud800") != session_fraction("b", "\ud800")


def test_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from pipeline.serve.request_log import request_log
from tests.serve.test_request_log import RequestLog, RequestLogOptions, exchange_of
request_log._ROWS_PER_BATCH = 10
log = RequestLog(RequestLogOptions(directory=Path(sys.argv[1]), rotate_bytes=1))
log.start()
while True:
    log.put(exchange_of(1))
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(FILE_PATTERN))) < 20:
        assert time.monotonic() < deadline
        logged(tmp_path)  # a reader sees whole files at any time
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    assert {pq.read_metadata(f).num_rows for f in tmp_path.glob(FILE_PATTERN)} == {10}
    old = tmp_path / ".requests-20260101T000000Z-00.parquet.00"
    old.write_bytes(b"half")
    RequestLog(RequestLogOptions(directory=tmp_path))
    assert not old.exists()


@pytest.mark.slow
def test_malformed_requests_are_answered_as_without_a_log(shop: Shop, tmp_path: Path) -> None:
    counts = []
    for name in (None, "log"):
        options = None if name is None else RequestLogOptions(directory=tmp_path / name)
        with running_server(shop.repository, ports=free_ports(), request_log=options) as server:
            counts.append(malformed(server, 4, 2_000))
    assert counts[0] == counts[1]
    assert len(logged(tmp_path / "log")) > 50


def test_server_logs_what_it_answers_over_both_protocols(shop: Shop, tmp_path: Path) -> None:
    options = RequestLogOptions(directory=tmp_path / "log")
    ids = ["sku-00001", "sku-00002", "no such\x1b[31m item"]
    lists = []
    with running_server(shop.repository, ports=free_ports(), request_log=options) as server:
        for url in (f"http://{server.http_url}", f"grpc://{server.grpc_url}"):
            with Client(url) as client:
                lists += client.recommend([{"item_id": ids}], 4, session="ann").items.tolist()
                sessions = [{"item_id": ids[:1]}, {"item_id": ids[:2]}]
                lists += client.recommend(sessions, 4).items.tolist()
        tensor: Any
        with closing(tritonclient.http.InferenceServerClient(server.http_url)) as plain:
            tensor = tritonclient.http.InferInput("item_id", [1, 3], "BYTES")
            tensor.set_data_from_numpy(np.array([ids], object), binary_data=False)
            answer = plain.infer(
                "recommender", [tensor], parameters={"session": 42},
                request_compression_algorithm="gzip", response_compression_algorithm="gzip",
            )  # fmt: skip
            lists += answer.as_numpy("item_ids").tolist()
        with closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as plain:
            tensor = tritonclient.grpc.InferInput("item_id", [1, 3], "BYTES")
            tensor.set_data_from_numpy(np.array([ids], object))
            answer = plain.infer(
                "recommender", [tensor], parameters={"session": 42}, compression_algorithm="gzip"
            )
            lists += answer.as_numpy("item_ids").tolist()
    [file] = (tmp_path / "log").glob(FILE_PATTERN)
    rows = pq.read_table(file).to_pylist()
    assert [row["recommendations"] for row in rows] == [
        [i.decode() if isinstance(i, bytes) else i for i in row] for row in lists
    ]
    assert [row["session"] for row in rows] == ["ann", None, None] * 2 + ["42", "42"]
    assert [row["items"] for row in rows] == [ids, ids[:1], ids[:2]] * 2 + [ids, ids]
    assert {(row["model"], row["version"], row["arm"]) for row in rows} == {
        ("recommender", 1, None)
    }
    assert [row["k"] for row in rows] == [4] * 6 + [10, 10]
