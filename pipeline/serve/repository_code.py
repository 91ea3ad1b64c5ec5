"""Check of the Python code in a model repository, which Triton runs.

An export copies this code from the project. In a repository that was changed, or that another
version wrote, it differs, and the repository is not served unless a trusted key has signed it.
"""

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from pipeline.core.errors import ArtifactError
from pipeline.core.files import find_resource
from pipeline.core.manifest import foreign_files, parse_manifest

_ADAPTER = "model.py"
_RUNTIME = "request_runtime"
CONFIG_FILE = "config.pbtxt"
_SUFFIXES = {*(".py", ".json", ".parquet", ".npy", ".pt", ".pbtxt", ".txt", ".sig", "")}
_BACKENDS = {"", "python", "pytorch", "pytorch_libtorch", "ensemble"}
_PARAMETERS = {"INFERENCE_MODE", "DISABLE_OPTIMIZED_EXECUTION", "pipeline"}
_FIELDS = {
    *("name", "backend", "platform", "max_batch_size", "input", "output", "parameters"),
    *("dynamic_batching", "instance_group", "model_warmup", "version_policy"),
    "ensemble_scheduling",
}
"""Fields that exports write into a config.pbtxt."""


def check_code(repository: Path) -> None:
    """ArtifactError for code in a repository that Triton or Python would run and no export writes.

    This is Python that differs from the project's, bytecode, other backends, and files that are not
    in the manifest.
    """
    manifest = parse_manifest(repository)
    if foreign := foreign_files(repository, manifest):
        raise ArtifactError(
            f"{repository} holds {min(foreign)}, which is no part of it. Remove it, or serve it as "
            "it is with --any-code."
        )
    for file in sorted(repository.rglob("*")):
        if "__pycache__" in file.parts:
            raise ArtifactError(
                f"{file} is compiled Python, which an export does not write. Remove it."
            )
        if file.suffix == ".py" and file.read_bytes() != _own(file):
            raise ArtifactError(
                f"{file} is not the Python of this version: another one exported it, or it was "
                "changed. Export the run again, or serve it as it is with --any-code."
            )
        if file.is_file() and file.suffix not in _SUFFIXES:
            raise ArtifactError(
                f"{file} is no file that an export writes. Serve it as it is with --any-code."
            )
        if file.name == CONFIG_FILE and (setting := _other_setting(file.read_text("utf-8"))):
            raise ArtifactError(
                f"{file} sets {setting}, which no export does. Export the run again, or serve it "
                "as it is with --any-code."
            )


def _other_setting(text: str) -> str | None:
    """Return a setting of a configuration that could make Triton run other code, None without."""
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError:
        return "what this version does not know"
    fields = {field.name for field, _ in config.ListFields()}
    others = [*(fields - _FIELDS), *(set(config.parameters) - _PARAMETERS)]
    others += [name for name in (config.backend, config.platform) if name not in _BACKENDS]
    return repr(min(others)) if others else None


def _own(file: Path) -> bytes | None:
    """Return the project's own version of a file in `MODEL/VERSION/`, None without one."""
    parts = file.parts
    if _RUNTIME in parts:
        name = Path(*parts[len(parts) - parts[::-1].index(_RUNTIME) :])
        own = Path(__file__).parent / "runtime" / name
    elif file.name == _ADAPTER:
        own = find_resource(f"triton_models/requests/1/{_ADAPTER}")
    else:
        return None
    return own.read_bytes() if own.is_file() else None
