"""Free ports of a server."""

from typing import Self

import pytest

from pipeline.serve.triton import ports as module
from pipeline.serve.triton.ports import Ports, fill_ports, inner_ports


class FakeSocket:
    """Socket of a machine whose first free port is the lowest one from 100 that is not bound."""

    bound: set[int]

    def __enter__(self) -> Self:
        self.port = 0
        return self

    def __exit__(self, *_: object) -> None:
        self.bound.discard(self.port)

    def bind(self, address: tuple[str, int]) -> None:
        if address[1] in self.bound:
            raise OSError
        self.port = address[1] or next(p for p in range(100, 200) if p not in self.bound)
        self.bound.add(self.port)

    def getsockname(self) -> tuple[str, int]:
        return "", self.port


def test_free_port_is_none_of_the_other_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSocket, "bound", set(), raising=False)
    monkeypatch.setattr(module.socket, "socket", FakeSocket)
    filled = fill_ports(Ports(http=0, grpc=100, metrics=0))
    assert filled == Ports(http=101, grpc=100, metrics=102)
    inner = inner_ports(Ports(http=100, grpc=103, metrics=101))
    assert inner == Ports(http=102, grpc=104, metrics=101)
    FakeSocket.bound.add(101)
    assert fill_ports(Ports(http=0, grpc=101, metrics=0)) == Ports(http=100, grpc=101, metrics=102)
    assert FakeSocket.bound == {101}
