"""The repository on disk: what Triton reads, and what must not be in it."""

import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core import artifact
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ArtifactError, ConfigError, PipelineError
from pipeline.exporting import torchscript
from pipeline.exporting import triton_config as config
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.repository import STEPS
from pipeline.exporting.run import export
from pipeline.exporting.served_models import read_models
from pipeline.exporting.versions import rollback
from pipeline.model.model_files import load_model
from pipeline.serve.runtime.request_encoder import Encoder
from tests.conftest import Shop


def test_every_config_is_read_back_by_tritons_own_proto(shop: Shop) -> None:
    names = {path.parent.name for path in shop.repository.glob("*/config.pbtxt")}
    assert names == {
        "recommender",
        "recommender_v1",
        *(f"recommender_{part}_v1" for part in STEPS),
    }
    for name in names:
        read = config.read_config(shop.repository / name)
        assert read.name == name
        assert read.max_batch_size == 256
        assert (shop.repository / name / "1").is_dir()
    ensemble = config.read_config(shop.repository / "recommender")
    inputs = {tensor.name for tensor in ensemble.input}
    outputs = {tensor.name for tensor in ensemble.output}
    assert not inputs & outputs, "Triton would answer with the input"
    made = set(inputs)
    for step in ensemble.ensemble_scheduling.step:
        assert set(step.input_map.values()) <= made
        made |= set(step.output_map.values())
    assert outputs <= made


def test_tensors_of_the_steps_fit_each_other(shop: Shop) -> None:
    ensemble = config.read_config(shop.repository / "recommender")
    kinds = {t.name: (t.data_type, tuple(t.dims)) for t in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = config.read_config(shop.repository / step.model_name)
        for tensor in model.input:
            kind = kinds[step.input_map[tensor.name]]
            assert kind == (tensor.data_type, tuple(tensor.dims)), tensor.name
        for tensor in model.output:
            kinds[step.output_map[tensor.name]] = (tensor.data_type, tuple(tensor.dims))


def test_no_artifact_holds_a_pickle_or_a_path_of_this_machine(shop: Shop) -> None:
    """TorchScript's own archive has two records in pickle's notation, which its reader takes
    apart without running anything: an index of the constants, and the (empty) module."""
    here = [str(Path(__file__).parents[2]), str(shop.data.parent), str(Path.home())]
    for directory in (shop.data, shop.run, shop.repository):
        for file in (path for path in directory.rglob("*") if path.is_file()):
            content = file.read_bytes()
            assert file.suffix not in (".pkl", ".pickle", ".joblib", ".dill", ".bin", ".pth")
            assert not any(path.encode() in content for path in here), file
            if file.suffix == ".pt":
                with zipfile.ZipFile(file) as archive:
                    records = [n for n in archive.namelist() if "pkl" in n]
                assert sorted(Path(n).name for n in records) == ["constants.pkl", "data.pkl"]
            else:
                assert not (content[:1] == b"\x80" and content[-1:] == b"."), file
            if file.suffix == ".npy":
                np.load(file, allow_pickle=False)


def test_the_program_on_disk_equals_the_model(shop: Shop) -> None:
    model = load_model(shop.run)
    served = torchscript.InferenceModel(model, model.inputs.feature_names, {"device"})
    program = torch.jit.load(
        str(shop.repository / "recommender_model_v1" / "1" / "model.pt"), map_location="cpu"
    )
    assert torchscript.prove_parity(served, program, 20) < 1e-4


def test_a_program_that_differs_from_the_model_is_not_exported(shop: Shop) -> None:
    model = load_model(shop.run)
    served = torchscript.InferenceModel(model, model.inputs.feature_names, {"device"})
    program = torchscript.trace(served, 20)
    other = load_model(shop.run)
    with torch.no_grad():
        other.inputs.item_table.weight[5] += 1
    served = torchscript.InferenceModel(other, model.inputs.feature_names, {"device"})
    with pytest.raises(PipelineError, match="differs from the model"):
        torchscript.prove_parity(served, program, 20)


def test_int8_scoring_gives_the_same_lists(shop: Shop, tmp_path: Path) -> None:
    result = export(shop.run, tmp_path / "out", ExportOptions(scoring="int8"))
    assert result.scoring == "int8"
    assert result.largest_score_difference < 1e-4
    model = load_model(shop.run)
    names = model.inputs.feature_names
    plain = torchscript.InferenceModel(model, names, {"device"})
    program = torch.jit.load(
        str(tmp_path / "out" / "recommender_model_v1" / "1" / "model.pt"), map_location="cpu"
    )
    request = torchscript.example_request(plain, 20, 9, seed=3)
    answer, expected = (
        torchscript.unpack_answer(one(request.packed(plain)), plain.width)
        for one in (program, plain)
    )
    assert torch.allclose(answer.scores, expected.scores, atol=1e-4)
    with pytest.raises(ConfigError, match="int8 is for the CPU"):
        export(shop.run, tmp_path / "gpu", ExportOptions(scoring="int8", device="gpu"))


def test_raw_ids_become_indices_and_indices_the_same_ids(shop: Shop) -> None:
    encoder = Encoder(shop.repository / "recommender_requests_v1" / "1")
    facts = read_manifest(shop.repository, "repository")
    lookup = encoder.lookups["item_id"]
    assert lookup(np.array([b"", b"never seen"], object)).tolist() == [1, 2]
    assert len(encoder.items) == facts["catalogue_items"] > 100
    assert lookup(encoder.items).tolist() == [*range(3, 3 + len(encoder.items))]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"default_k": 0}, "--k is 0, expected 1 to --max-k"),
        ({"default_k": 11, "max_k": 10}, "--k is 11"),
        ({"max_batch": 0}, "--max-batch is 0"),
        ({"name": "../x"}, "--name is '../x'"),
    ],
)
def test_contradictory_settings_are_refused(
    shop: Shop, tmp_path: Path, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        export(shop.run, tmp_path / "out", ExportOptions(**arguments))  # type: ignore[arg-type]
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_only_runs_are_exported(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a data directory, expected a run directory"):
        export(shop.data, tmp_path / "out")
    with pytest.raises(ArtifactError, match="does not exist"):
        export(tmp_path / "none", tmp_path / "out")


def test_a_short_catalogue_bounds_the_lists(shop: Shop, tmp_path: Path) -> None:
    result = export(shop.run, tmp_path / "out", ExportOptions(default_k=10_000, max_k=10_000))
    assert result.max_k == result.catalogue_items


def test_the_next_export_in_the_same_place_is_the_next_version_beside_the_one_before(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    # long enough ago for no server to be busy with them
    monkeypatch.setattr("pipeline.exporting.versions.MIN_KEPT_SECONDS", 0)
    written: dict[int, bytes] = {}
    for version in (1, 2, 3):
        assert export(shop.run, repository).version == version
        models = {path.name for path in repository.iterdir() if path.is_dir()}
        kept = {version, max(1, version - 1)}
        assert models == {"recommender"} | {
            f"recommender{step}_v{v}" for step in ("", *(f"_{s}" for s in STEPS)) for v in kept
        }
        for v in kept:  # asks its own step, whatever is served
            alias = config.read_config(repository / f"recommender_v{v}")
            assert alias.version_policy.specific.versions == [v]
            assert alias.ensemble_scheduling.step[0].model_name == f"recommender_requests_v{v}"
        ensemble = config.read_config(repository / "recommender")
        asked = {step.model_name for step in ensemble.ensemble_scheduling.step}
        assert all(name.endswith(f"_v{version}") for name in asked)
        # what an answer gives as the version of the model
        assert ensemble.version_policy.specific.versions == [version]
        versions = {p.name for p in (repository / "recommender").iterdir() if p.is_dir()}
        assert versions == {str(v) for v in kept}
        assert read_manifest(repository, "repository")["version"] == version
        for v in kept:
            content = (repository / f"recommender_model_v{v}" / "1" / "model.pt").read_bytes()
            assert content == written.setdefault(v, content)


def test_another_name_adds_a_model_and_keeps_the_others(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.exporting.versions.MIN_KEPT_SECONDS", 0)
    repository = tmp_path / "repository"

    def models() -> set[str]:
        return {path.name for path in repository.iterdir() if path.is_dir()}

    def folders(name: str, *versions: int) -> set[str]:
        steps = {f"{name}_{step}_v{v}" for step in STEPS for v in versions}
        return {name, *steps, *(f"{name}_v{v}" for v in versions)}

    export(shop.run, repository)
    content = {
        path.relative_to(repository): path.read_bytes()
        for path in repository.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    result = export(shop.run, repository, ExportOptions(name="other"))
    assert (result.version, list(result.other_models)) == (2, ["recommender"])
    assert models() == folders("recommender", 1) | folders("other", 2)
    assert {path: (repository / path).read_bytes() for path in content} == content
    read_manifest(repository, "repository")
    # a new version of one
    result = export(shop.run, repository)
    assert (result.version, list(result.superseded)) == (3, ["1"])
    assert models() == folders("recommender", 1, 3) | folders("other", 2)
    for name in ("other_model_v2", "other_v2"):
        with pytest.raises(ConfigError, match=f"needs the model name {name}, which"):
            export(shop.run, repository, ExportOptions(name=name))
    # damage: nothing that another model needs is copied or lost
    (repository / "other" / "config.pbtxt").write_text("")
    with pytest.raises(ArtifactError, match=r"other models as well \(other\): --replace"):
        export(shop.run, repository)
    result = export(shop.run, repository, replace_others=True)
    assert (result.version, result.other_models) == (4, {})
    assert models() == folders("recommender", 4)


def test_models_that_are_exported_in_turn_are_compared_each_by_itself(
    shop: Shop, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"

    def export_if_needed(name: str, *options: str) -> str:
        words = ["export", shop.run, "--out", repository, "--name", name, "--if-needed", *options]
        result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    assert "version 1: " in export_if_needed("one")
    assert "version 2: " in export_if_needed("two")
    for name in ("one", "two", "one"):
        assert export_if_needed(name) == f"{repository} is up to date.\n"
    assert "version 3: " in export_if_needed("one", "--k", "5")
    assert export_if_needed("two") == f"{repository} is up to date.\n"
    (repository / "two" / "config.pbtxt").write_text("")
    assert "version 4: " in export_if_needed("one", "--k", "5", "--replace", "--yes")


def test_replace_asks_on_a_terminal_and_needs_yes_elsewhere(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    export(shop.run, repository, ExportOptions(name="other"))
    command = ["export", str(shop.run), "--out", str(repository), "--replace"]

    def models() -> set[str]:
        return set(read_models(repository).models)

    with pytest.raises(ConfigError, match=r"--replace removes other from .* Give --replace --yes"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    monkeypatch.setattr("pipeline.cli.export._is_terminal", lambda: True)
    refused = CliRunner().invoke(app, command, input="n\n")
    assert (refused.exit_code, models()) == (1, {"other"})
    assert f"Remove other from {repository}?" in refused.output
    assert CliRunner().invoke(app, command, input="y\n").exit_code == 0
    assert models() == {"recommender"}
    export(shop.run, repository, ExportOptions(name="other"))
    assert models() == {"recommender", "other"}
    monkeypatch.setattr("pipeline.cli.export._is_terminal", lambda: False)
    assert CliRunner().invoke(app, [*command, "--yes"]).exit_code == 0
    assert models() == {"recommender"}


def test_recently_superseded_versions_are_kept(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"

    def versions() -> set[str]:
        return {path.name.split("_v")[1] for path in repository.glob("recommender_model_v*")}

    for _ in range(3):
        export(shop.run, repository)
    assert versions() == {"1", "2", "3"}
    later = time.time() + 1_000
    monkeypatch.setattr("pipeline.exporting.versions.time.time", lambda: later)
    export(shop.run, repository)
    assert versions() == {"3", "4"}


def test_version_numbers_are_never_used_twice(shop: Shop, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for _ in range(2):
        export(shop.run, repository)
    path = repository / "recommender_model_v2" / "1" / "model.pt"
    path.write_bytes(path.read_bytes()[:-1])
    assert export(shop.run, repository).version == 3
    # what is damaged is not kept
    assert {p.name for p in repository.glob("*_model_*")} == {"recommender_model_v3"}


def test_an_export_changes_nothing_of_the_one_before_until_it_takes_its_place(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may look at any moment; Triton takes the change of an inode for a newer model."""

    def times() -> dict[str, int]:
        return {str(p): p.stat().st_ctime_ns for p in [repository, *repository.rglob("*")]}

    repository = tmp_path / "repository"
    export(shop.run, repository)
    before, replace = times(), artifact.replace_directory
    looked = []

    def look_first(partial: Path, path: Path) -> None:
        looked.append(times())
        replace(partial, path)

    monkeypatch.setattr(artifact, "replace_directory", look_first)
    export(shop.run, repository)
    assert looked == [before]


def test_a_model_for_a_gpu_needs_one_to_be_traced_on(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds none"):
        export(shop.run, tmp_path / "repository", ExportOptions(device="gpu"))


@pytest.mark.gpu
def test_a_model_for_a_gpu_is_traced_there_and_placed_there(shop: Shop, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    export(shop.run, tmp_path / "repository", ExportOptions(device="gpu"))
    read = config.read_config(tmp_path / "repository" / "recommender_model_v1")
    assert read.instance_group[0].kind == config.proto.ModelInstanceGroup.KIND_GPU
    path = tmp_path / "repository" / "recommender_model_v1" / "1" / "model.pt"
    program = torch.jit.load(str(path), map_location="cuda")
    model = load_model(shop.run)
    served = torchscript.InferenceModel(model, model.inputs.feature_names, {"device"}).cuda()
    assert torchscript.prove_parity(served, program, 20) < 1e-4


def test_rollback_serves_the_version_before_and_exports_go_on_from_there(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.exporting.versions.MIN_KEPT_SECONDS", 0)
    repository = tmp_path / "repository"

    def versions() -> set[str]:
        return {path.name.split("_v")[1] for path in repository.glob("recommender_model_v*")}

    def served() -> list[int]:
        ensemble = config.read_config(repository / "recommender")
        [version] = ensemble.version_policy.specific.versions
        assert {s.model_name for s in ensemble.ensemble_scheduling.step} == {
            f"recommender_requests_v{version}"
        }
        assert read_manifest(repository, "repository")["version"] == version
        return version

    runs = []
    for k in (5, 6, 7):  # three exports that differ
        export(shop.run, repository, ExportOptions(default_k=k), keep=3)
        runs.append(read_manifest(repository, "repository")["fingerprint"])
    assert (served(), versions()) == (3, {"1", "2", "3"})
    assert rollback(repository).to_dict() == {
        "name": "recommender", "version": 2, "withdrawn": 3, "run": shop.run.name
    }  # fmt: skip
    # the version that was left stays for a server that still uses it
    assert (served(), versions()) == (2, {"1", "2", "3"})
    assert read_manifest(repository, "repository")["fingerprint"] == runs[1]
    assert rollback(repository).version == served() == 1
    with pytest.raises(ConfigError, match="no version of recommender before 1"):
        rollback(repository)
    # a number is never used twice, and what a rollback left does not come back
    assert export(shop.run, repository, keep=3).version == served() == 4
    assert versions() == {"1", "4"}
    assert rollback(repository).version == served() == 1


def test_rollback_names_the_model_that_it_cannot_choose(shop: Shop, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with pytest.raises(ArtifactError, match="does not exist"):
        rollback(repository)
    for name in ("one", "two", "one", "two"):
        export(shop.run, repository, ExportOptions(name=name))
    with pytest.raises(ConfigError, match=r"has the models one, two\. Choose one by --name"):
        rollback(repository)
    with pytest.raises(ConfigError, match="has no model three, it has one, two"):
        rollback(repository, "three")
    assert rollback(repository, "one").version == 1
    models = read_models(repository).models
    assert {name: facts["version"] for name, facts in models.items()} == {"one": 1, "two": 4}
    assert export(shop.run, repository).version == 5


def test_rollback_of_an_older_program_is_refused(shop: Shop, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for _ in range(2):
        export(shop.run, repository)
    facts = read_manifest(repository, "repository")
    del facts["earlier"]
    manifest = json.loads((repository / "manifest.json").read_text())
    del manifest["sha256"]
    (repository / "manifest.json").write_text(json.dumps(manifest | {"facts": facts}))
    with pytest.raises(ArtifactError, match="an earlier release exported version 1"):
        rollback(repository)
    assert read_manifest(repository, "repository")["version"] == 2
