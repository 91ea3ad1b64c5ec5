"""Lines that the backend of requests writes to Triton's log."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.core.text import shown
from pipeline.serve import runtime
from pipeline.serve.runtime import batching, lookups, request, request_encoder
from tests.conftest import ROOT

EVIL = "x\x1b]0;title\x07\x1b[2J\r\u202e\u200b\x9b\nforged"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as Triton loads it, with the lines of its log in `lines`."""
    lines: list[str] = []
    triton: Any = ModuleType("triton_python_backend_utils")
    triton.Logger = SimpleNamespace(log_error=lines.append)
    triton.InferenceResponse = SimpleNamespace
    triton.TritonError = lambda message, code: SimpleNamespace(message=message, code=code)
    triton.TritonError.INTERNAL, triton.TritonError.INVALID_ARG = "internal", "invalid"
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.setitem(sys.modules, "request_runtime", runtime)
    for module in (batching, lookups, request, request_encoder):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setitem(sys.modules, f"request_runtime.{name}", module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = ROOT / "triton_models" / "requests" / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("backend", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.lines = lines  # type: ignore[attr-defined]
    return module


def test_an_id_in_an_error_is_escaped_in_the_log(backend: ModuleType) -> None:
    response = backend._failure(ValueError(f"no table for {EVIL}"))
    line = " ".join(EVIL.split())
    assert backend.lines == [f"ValueError: no table for {shown(line)}"]
    assert backend.lines[0].isprintable()
    assert response.error.message == f"no table for {line}"  # the client is answered exactly
    assert response.error.code == "internal"


def test_errors_of_the_client_are_not_in_the_log(backend: ModuleType) -> None:
    response = backend._failure(request.RequestError(EVIL))
    assert (response.error.message, response.error.code) == (EVIL, "invalid")
    assert backend.lines == []
