"""Keys and TLS of a real Triton: required, checked, and refused with a reason."""

import asyncio
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, ServingError
from pipeline.serve.client.async_client import AsyncClient
from pipeline.serve.client.client import Client
from pipeline.serve.run import describe, running_server
from pipeline.serve.triton.access import (
    GRPC_PREFIX,
    KEY_HEADER,
    ClientKey,
    Tls,
    open_to_network,
    read_key,
    read_tls,
)
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from tests.conftest import SESSION, Shop
from tests.serve.certificates import Pair, make_authority, make_certificate
from tests.serve.double import add_double
from tests.serve.test_triton import READY_SECONDS

KEY = "every:kind=of,sign/\"'\\$;{}~#%"  # Triton's option separates by some of these
WRONG = [None, KEY[:-1], KEY + "x", "another-key-of-some-length"]
GRPC_HEADER = GRPC_PREFIX + KEY_HEADER


@pytest.fixture(scope="module")
def keyed(shop: Shop) -> Iterator[TritonServer]:
    with running_server(shop.repository, ports=free_ports(), keys=[ClientKey(KEY)]) as server:
        yield server


def status(
    server: TritonServer, path: str, key: str | None = None, body: str | None = None
) -> tuple[int, bytes]:
    """Of one HTTP request."""
    headers = {} if key is None else {KEY_HEADER: key}
    connection = http.client.HTTPConnection(server.http_url, timeout=20)
    with closing(connection):
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()


REQUEST = json.dumps(
    {"inputs": [{"name": "item_id", "shape": [1, 1], "datatype": "BYTES", "data": ["sku-00001"]}]}
)
MODEL = "/v2/models/recommender"


@pytest.mark.parametrize("key", WRONG)
def test_http_requires_the_key_for_all_but_health(keyed: TritonServer, key: str | None) -> None:
    for path in ("/v2", MODEL, f"{MODEL}/config", f"{MODEL}/stats", "/v2/models/stats"):
        assert status(keyed, path, key)[0] == 403, path
        assert status(keyed, path, KEY)[0] == 200, path
    assert status(keyed, f"{MODEL}/infer", KEY, REQUEST)[0] == 200
    for end in ("infer", "versions/1/infer", "generate", "generate_stream"):
        refused, text = status(keyed, f"{MODEL}/{end}", key, REQUEST)
        assert (refused, b"is restricted" in text) == (403, True), end
    for path in ("/v2/health/ready", "/v2/health/live", f"{MODEL}/ready"):
        assert status(keyed, path, key)[0] == 200, path
    # what is closed to all is not opened by the key
    assert status(keyed, "/v2/repository/index", KEY, "{}")[0] == 403


def test_shape_of_terabytes_is_refused_without_the_key(keyed: TritonServer) -> None:
    shape = {"name": "price", "shape": [1, 4_000_000_000_000], "datatype": "FP64", "data": [1]}
    body = json.dumps({"inputs": [shape]})
    assert status(keyed, f"{MODEL}/infer", None, body)[0] == 403
    assert status(keyed, f"{MODEL}/infer", KEY, REQUEST)[0] == 200


@pytest.mark.parametrize("key", WRONG)
def test_grpc_requires_the_key_for_all_but_health(keyed: TritonServer, key: str | None) -> None:
    headers = {} if key is None else {GRPC_HEADER: key}
    calls: dict[str, Any] = {
        "metadata": lambda c, h: c.get_server_metadata(headers=h),
        "config": lambda c, h: c.get_model_config("recommender", headers=h),
        "statistics": lambda c, h: c.get_inference_statistics(headers=h),
        "inference": lambda c, h: c.infer("recommender", [item()], headers=h),
    }
    with closing(tritonclient.grpc.InferenceServerClient(keyed.grpc_url)) as client:
        for call in calls.values():
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="is restricted"):
                call(client, headers)
            call(client, {GRPC_HEADER: KEY})
        assert client.is_server_ready(headers=headers)
        with pytest.raises(tritonclient.grpc.InferenceServerException, match="is restricted"):
            client.get_model_repository_index(headers={GRPC_HEADER: KEY})
    with grpc.insecure_channel(keyed.grpc_url) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        with pytest.raises(grpc.RpcError, match="is restricted"):
            list(stream(iter([b""]), metadata=list(headers.items()), timeout=20))


def test_large_message_without_the_key_is_not_looked_at(keyed: TritonServer) -> None:
    with grpc.insecure_channel(keyed.grpc_url) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError, match="is restricted") as caught:
            infer(bytes(100_000), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as caught:
            infer(bytes(100_000), metadata=[(GRPC_HEADER, KEY)], timeout=20)
        assert caught.value.code() is not grpc.StatusCode.UNAVAILABLE


def test_several_keys_need_the_proxy(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="Triton itself takes one key"):
        TritonServer(shop.repository, keys=[ClientKey(KEY), ClientKey(KEY + "2", "app")])


def item() -> Any:
    tensor = tritonclient.grpc.InferInput("item_id", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["sku-00001"]], object))
    return tensor


def urls(server: TritonServer) -> list[str]:
    return [f"http://{server.http_url}", f"grpc://{server.grpc_url}"]


def test_clients_send_the_key_and_report_a_wrong_one(keyed: TritonServer) -> None:
    async def ask(url: str, key: str | None) -> np.ndarray:
        async with AsyncClient(url, key=key) as client:
            return (await client.recommend([SESSION], 3)).items

    for url in urls(keyed):
        with Client(url, key=KEY) as client:
            items = client.recommend([SESSION], 3).items
        assert items.shape == (1, 3)
        assert asyncio.run(ask(url, KEY)).tolist() == items.tolist()
        for key, words in ((None, "asked with no key"), (WRONG[-1], "with another key")):
            for call in (
                lambda u=url, k=key: Client(u, key=k).recommend([SESSION]),
                lambda u=url, k=key: asyncio.run(ask(u, k)),
            ):
                with pytest.raises(ServingError, match=words) as caught:
                    call()
                assert "\n" not in str(caught.value)
                assert KEY not in str(caught.value)


def test_command_reads_the_key_file_and_warns_if_others_can(
    keyed: TritonServer, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    command = ["recommend", urls(keyed)[1], "--items", "sku-00001", "--k", "2", "--json"]
    result = CliRunner().invoke(app, [*command, "--key-file", str(file)], catch_exceptions=False)
    assert len(json.loads(result.stdout)["sessions"][0]["recommendations"]) == 2
    assert result.stderr == ""
    file.chmod(0o644)
    result = CliRunner().invoke(app, [*command, "--key-file", str(file)], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"Warning: others on this machine can read {file}; `chmod 600 {file}`."
    ]
    with pytest.raises(ServingError, match="no key"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_a_server_without_a_key_on_the_network_gets_a_warning(tmp_path: Path) -> None:
    tls = Tls(tmp_path / "cert.pem", tmp_path / "key.pem")
    for address, key, secured, warned in (
        ("127.0.0.1", None, None, False),
        ("10.0.0.8", None, None, True),
        ("10.0.0.7", None, tls, True),
        ("10.0.0.7", "k" * 32, None, False),
        ("10.0.0.7", None, tls._replace(client_ca=tmp_path / "ca.pem"), False),
    ):
        line = open_to_network(address, has_keys=key is not None, tls=secured)
        assert (line is not None) == warned
        assert line is None or f"listens on {address} without a key" in line


@pytest.mark.parametrize("text", ["", "short", "x" * 1025, "with a space inside it", "ümlaut" * 5])
def test_short_or_invalid_key_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    reason = "has 5 words" if " " in text else "16 to 1024 visible ASCII"
    with pytest.raises(ConfigError, match=reason):
        read_key(tmp_path / "key")
    if text:
        with pytest.raises(ConfigError, match="16 to 1024 visible ASCII"):
            Client("http://127.0.0.1:8000", key=text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(tmp_path / "none")


class Files(NamedTuple):
    """Certificates of the server, of clients, and of an untrusted authority."""

    authority: Pair
    server: Pair
    clients: Pair
    client: Pair
    stranger: Pair
    stranger_client: Pair


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    directory = tmp_path_factory.mktemp("certificates")
    authority, clients, stranger = (
        make_authority(directory, name) for name in ("authority", "clients", "stranger")
    )
    return Files(
        authority,
        make_certificate(authority, "server"),
        clients,
        make_certificate(clients, "client"),
        stranger,
        make_certificate(stranger, "stranger-client"),
    )


def refused(url: str, **arguments: Any) -> str:
    """Return the error of a client that must be refused."""

    async def ask() -> None:
        async with AsyncClient(url, timeout=10, **arguments) as client:
            await client.recommend([SESSION], 3)

    with pytest.raises(ServingError) as caught, Client(url, timeout=10, **arguments) as client:
        client.recommend([SESSION], 3)
    with pytest.raises(ServingError):
        asyncio.run(ask())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tls_encrypts_grpc_and_checks_the_certificate(shop: Shop, files: Files) -> None:
    with running_server(
        shop.repository, ports=free_ports(), keys=[ClientKey(KEY)], tls=Tls(*files.server)
    ) as server:
        url = describe(shop.repository, server)["grpc"]
        assert url == f"grpcs://{server.grpc_url}"
        ca = files.authority.cert
        with Client(url, key=KEY, ca=ca) as client:
            assert client.recommend([SESSION], 3).items.shape == (1, 3)
        command = ["recommend", url, "--items", "sku-00001", "--k", "2", "--json"]
        key = ca.parent / "key"
        key.write_text(KEY)
        options = ["--ca", str(ca), "--key-file", str(key)]
        result = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        assert result.exit_code == 0
        assert "no key" in refused(url, ca=ca)
        assert "right authority" in refused(url, key=KEY, ca=files.stranger.cert)
        assert "right authority" in refused(url, key=KEY)
        assert "No server answers" in refused(f"grpc://{server.grpc_url}", key=KEY)


def test_client_authority_requires_a_client_certificate(shop: Shop, files: Files) -> None:
    tls = Tls(*files.server, files.clients.cert)
    with running_server(shop.repository, ports=free_ports(), tls=tls) as server:
        url, ca = f"grpcs://{server.grpc_url}", files.authority.cert
        cert, cert_key = files.client
        with Client(url, ca=ca, cert=cert, cert_key=cert_key) as client:
            assert client.recommend([SESSION], 3).items.shape == (1, 3)
        assert "check ca, cert" in refused(url, ca=ca)
        other, other_key = files.stranger_client
        assert "check ca, cert" in refused(url, ca=ca, cert=other, cert_key=other_key)
        assert "No server answers" in refused(f"grpc://{server.grpc_url}")


def test_tls_restricts_http_to_loopback(tmp_path: Path, files: Files) -> None:
    add_double(tmp_path / "models")
    with TritonServer(
        tmp_path / "models", ports=free_ports(), host="127.0.0.2", tls=Tls(*files.server)
    ) as inside:
        assert inside.http_url == f"127.0.0.2:{inside.ports.http}"  # which is loopback as well
        inside.wait_until_ready(READY_SECONDS)
    open_to_all = TritonServer(
        tmp_path / "models",
        ports=free_ports(),
        host="0.0.0.0",  # noqa: S104  described, never started
        tls=Tls(*files.server),
    )
    arguments = open_to_all._options.arguments(Path("package"), Path("backends"))
    assert "--http-address=127.0.0.1" in arguments
    assert {"--grpc-address=0.0.0.0", "--metrics-address=0.0.0.0"} <= set(arguments)


def test_wrong_pem_files_are_refused_before_the_start(tmp_path: Path, files: Files) -> None:
    text = tmp_path / "text"
    text.write_text("no PEM")
    for tls, words in (
        ((text, files.server.key, None), "Expected PEM files"),
        ((files.server.cert, files.client.key, None), "KEY_VALUES_MISMATCH"),
        ((files.server.cert, tmp_path / "none", None), "No such file"),
        ((*files.server, text), "Expected PEM files"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            read_tls(*tls)
        assert "\n" not in str(caught.value)
    url = "grpcs://127.0.0.1:1"
    with pytest.raises(ConfigError, match="Expected PEM"):
        Client(url, ca=text)
    with pytest.raises(ConfigError, match="both cert and cert_key"):
        Client(url, cert=files.client.cert)
    with pytest.raises(ConfigError, match="are for grpcs"):
        Client("http://127.0.0.1:1", ca=files.authority.cert)
    with pytest.raises(ConfigError, match="timeout is 0"):
        Client(url, timeout=0)
    with pytest.raises(ConfigError, match="both --tls-cert and --tls-key"):
        CliRunner().invoke(app, ["serve", "x", "--tls-cert", str(text)], catch_exceptions=False)
