"""Offline prediction against loops over scores, and the files that it writes."""

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import api
from pipeline.cli.main import app
from pipeline.core.artifact import new_artifact
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.files import new_parquet
from pipeline.data.batch import SessionBatch
from pipeline.data.schema import Schema
from pipeline.data.sessions import session_ids
from pipeline.evaluation import recommender as prediction
from pipeline.evaluation.predict import (
    write_item_embeddings,
    write_recommendations,
    write_session_embeddings,
)
from pipeline.evaluation.recommender import Recommender
from pipeline.model.build import build_model
from pipeline.model.run import Run
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig
from pipeline.training.run import train
from tests.conftest import Shop
from tests.evaluation.test_targets import MODELS, V

NUM_ITEMS = 200


@pytest.fixture(scope="module")
def recommender(shop: Shop) -> Recommender:
    return Recommender.open(shop.run)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data and run of a shop with integer ids 10..19, whose model reads two interactions."""
    folder = tmp_path_factory.mktemp("numbers")
    random = np.random.default_rng(0)
    rows = [f"{s},{random.integers(10, 20)},{100 * s + i}" for s in range(60) for i in range(6)]
    (folder / "log.csv").write_text("session_id,item_id,t\n" + "\n".join(rows) + "\n")
    recipe = Preprocess(
        timestamp={"column": "t", "unit": "s"},  # type: ignore[arg-type]
        split={"test": 0.3},  # type: ignore[arg-type]
        max_sequence_length=2,
    )
    preprocess(recipe, [folder / "log.csv"], [], folder / "data")
    config = ModelConfig(d_model=8, n_head=2, n_layer=1)
    train(folder / "data", config, TrainConfig(epochs=1), folder / "run")
    return folder / "data", folder / "run"


def with_test_files(data: Path, target: Path, files: list[pa.Table], **settings_: Any) -> Path:
    """A copy of a data directory whose test part is these files, part-0, part-1, ..."""
    with new_artifact(target, "data", {}) as directory:
        shutil.copytree(data / "fitted", directory / "fitted")
        shutil.copyfile(data / "schema.pbtxt", directory / "schema.pbtxt")
        folder = directory / "sessions" / "test"
        folder.mkdir(parents=True)
        for number, table in enumerate(files):
            pq.write_table(table, folder / f"part-{number}.parquet", **settings_)
    return target


def listed(batches: Any) -> list[list[Any]]:
    """Items of each session's list."""
    return [
        [entry["item_id"] for entry in record["recommendations"]]
        for lists in batches
        for record in lists.records([None] * len(lists.counts))
    ]


def sessions_of(data: Path, part: str, catalogue: np.ndarray) -> list[list[Any]]:
    """Raw ids of each session, without those that are unknown."""
    table = pq.read_table(data / "sessions" / part)["item_id"].to_pylist()
    return [[catalogue[i - 3] for i in session if i > 2] for session in table]


@settings(max_examples=60, deadline=None)
@given(
    sessions=st.lists(
        st.lists(st.integers(2, V - 1), min_size=1, max_size=4), min_size=1, max_size=4
    ),
    excluded=st.lists(st.integers(0, V - 1), max_size=V),
    candidates=st.none() | st.sets(st.integers(3, V - 1), min_size=1),
    per_session=st.booleans(),
    k=st.integers(1, V - 3),
)
def test_top_k_is_the_best_of_the_allowed_items(
    sessions: list[list[int]],
    excluded: list[int],
    candidates: set[int] | None,
    per_session: bool,
    k: int,
) -> None:
    model = MODELS["gpt2"]
    lengths = torch.tensor([len(session) for session in sessions])
    rows = [torch.tensor(session) for session in sessions]
    items = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    batch = SessionBatch({"item_id": items}, lengths)
    left_out = torch.tensor(excluded, dtype=torch.int64)
    among = None if candidates is None else torch.tensor(sorted(candidates))
    with torch.no_grad():
        scores = model(batch)
        best = model.top_k(
            batch,
            k,
            excluded=left_out.expand(len(sessions), -1) if per_session else left_out,
            candidates=among,
        )
    allowed = (candidates or set(range(3, V))) - set(excluded)
    for row in range(len(sessions)):
        expected = sorted((float(scores[row, i]) for i in allowed), reverse=True)[:k]
        items = best.items[row].tolist()[: len(expected)]
        assert set(items) <= allowed
        assert len(set(items)) == len(expected)
        assert scores[row, items].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        padded = expected + [-float("inf")] * (k - len(expected))
        assert best.scores[row].tolist() == pytest.approx(padded, rel=1e-6, abs=1e-6)
        assert best.items[row].tolist()[len(expected) :] == [0] * (k - len(expected))


def test_number_of_scores_in_memory_is_bounded(
    shop: Shop, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = listed(recommender.recommend(shop.data, "valid", 5, filter_seen=True))
    monkeypatch.setitem(prediction._SCORES_PER_STEP, "cpu", 3 * NUM_ITEMS + 9)
    parts = list(recommender.recommend(shop.data, "valid", 5, filter_seen=True))
    assert max(len(lists.counts) for lists in parts) == 3
    assert listed(parts) == whole


def test_lists_hold_candidates_without_seen_and_excluded_items(
    shop: Shop, recommender: Recommender
) -> None:
    catalogue = recommender.catalogue.tolist()
    candidates, excluded = catalogue[:12], [*catalogue[5:8], "nobody sells this"]
    lists = listed(
        recommender.recommend(
            shop.data, "test", 12, filter_seen=True, exclude=excluded, candidates=candidates
        )
    )
    sessions = sessions_of(shop.data, "test", recommender.catalogue)
    for items, session in zip(lists, sessions, strict=True):
        assert set(items) == set(candidates) - set(excluded) - set(session)
        assert len(items) == len(set(items))


def test_filter_seen_reads_the_whole_session(
    numbers: tuple[Path, Path],
) -> None:
    data, run = numbers
    recommender = Recommender.open(run)
    sessions = sessions_of(data, "test", recommender.catalogue)
    assert max(len(set(session)) for session in sessions) > 2
    lists = listed(recommender.recommend(data, "test", 10, filter_seen=True))
    for items, session in zip(lists, sessions, strict=True):
        assert set(items) == set(recommender.catalogue.tolist()) - set(session)


@pytest.mark.parametrize("ids", [[11, 12], ["11", "12"], np.array([11, 12]), [11, "12"]])
def test_filter_ids_may_be_text_or_integers(numbers: tuple[Path, Path], ids: Any) -> None:
    data, run = numbers
    recommender = Recommender.open(run)
    lists = listed(recommender.recommend(data, "test", 10, candidates=ids))
    assert all(set(items) == {11, 12} for items in lists)
    assert recommender.in_catalogue([*ids, "011", "eleven", None, 99, 2.5]).tolist() == [
        *([True] * 2),
        *([False] * 5),
    ]


def test_short_lists_are_padded_and_counted(
    shop: Shop, recommender: Recommender, numbers: tuple[Path, Path]
) -> None:
    candidates = recommender.catalogue[:2].tolist()
    with pytest.warns(UserWarning, match=r"1 of 3 candidates are not in the catalogue: 'sku-x'"):
        batches = recommender.recommend(shop.data, "test", 4, candidates=[*candidates, "sku-x"])
    lists = next(batches)
    assert set(lists.counts) == {2}
    assert lists.items[:, 2:].tolist() == [[None, None]] * len(lists.items)
    assert np.isneginf(lists.scores[:, 2:]).all()
    records = list(lists.records([f"s{row}" for row in range(len(lists.items))]))
    record = records[1]
    assert record["session_id"] == "s1"
    assert [entry["item_id"] for entry in record["recommendations"]] == lists.items[1, :2].tolist()
    data, run = numbers
    whole = next(Recommender.open(run).recommend(data, "test", 4, candidates=[11]))
    assert whole.items[0].tolist() == [11, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"k": 0}, "k is 0, expected 1 to 200"),
        ({"k": 201}, "k is 201, expected 1 to 200"),
        ({"candidates": ["a", "b"]}, r"None of the 2 candidates \('a', 'b'\) is in"),
        ({"candidates": []}, "No id is in the catalogue of"),
        ({"candidates": ["sku-00001"], "exclude": ["sku-00001"]}, "All 1 items that could be"),
        ({"batch_size": 0}, "batch_size is 0, expected 1 or more"),
    ],
)
def test_wrong_arguments_are_refused_before_any_prediction(
    shop: Shop, recommender: Recommender, settings_: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        recommender.recommend(shop.data, "test", **settings_)


def test_missing_part_is_named(shop: Shop, recommender: Recommender) -> None:
    with pytest.raises(ArtifactError, match="has no night sessions, it has: test, train, valid"):
        recommender.recommend(shop.data, "night")
    with pytest.raises(ArtifactError, match="has no night sessions"):
        recommender.session_embeddings(shop.data, "night")


def test_data_of_another_catalogue_is_refused(
    recommender: Recommender, numbers: tuple[Path, Path]
) -> None:
    with pytest.raises(ArtifactError, match="was trained on another catalogue"):
        recommender.recommend(numbers[0], "test")


@pytest.mark.parametrize("weight_tying", [True, False])
@pytest.mark.parametrize(("normalize", "temperature"), [(False, 1.0), (True, 0.07), (False, 3.0)])
@pytest.mark.parametrize(("architecture", "masking"), [("gpt2", "clm"), ("xlnet", "mlm")])
def test_embeddings_of_sessions_and_items_rank_like_the_scores(
    shop: Shop,
    architecture: str,
    masking: str,
    normalize: bool,
    temperature: float,
    weight_tying: bool,
) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=architecture,
        masking=masking,
        d_model=16,
        n_layer=1,
        weight_tying=weight_tying,
        normalize=normalize,
        temperature=temperature,
    )
    model = build_model(Schema.from_json(shop.data / "schema.pbtxt"), config, 20).eval()
    run = Run.open(shop.run)
    vars(run)["model"] = model
    recommender = Recommender(run)
    ids, items = recommender.item_embeddings()
    assert ids.tolist() == recommender.catalogue.tolist()
    assert items.dtype == np.float32
    vectors = np.concatenate(list(recommender.session_embeddings(shop.data, "valid")))
    items = np.argsort(-(vectors @ items.T), axis=1)[:, :10]
    lists = list(recommender.recommend(shop.data, "valid", NUM_ITEMS))
    for best, expected, scores in zip(
        items,
        chain.from_iterable(batch.items for batch in lists),
        chain.from_iterable(batch.scores for batch in lists),
        strict=True,
    ):
        by_id = dict(zip(expected.tolist(), scores.tolist(), strict=True))
        # by their scores, so that two that are equal but for rounding may change places
        assert [by_id[ids[i]] for i in best] == pytest.approx(scores[:10].tolist(), abs=1e-5)


def test_sessions_come_in_the_order_of_files_and_row_groups(
    shop: Shop, recommender: Recommender, tmp_path: Path
) -> None:
    table = pq.read_table(shop.data / "sessions" / "test")
    whole = dict(
        zip(
            table["session_id"].to_pylist(),
            listed(recommender.recommend(shop.data, "test", 5)),
            strict=True,
        )
    )
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    files = [shuffled.slice(n * 10, 10 if n < 11 else table.num_rows) for n in range(12)]
    data = with_test_files(shop.data, tmp_path / "data", files, row_group_size=4)
    lists = listed(recommender.recommend(data, "test", 5, batch_size=7))
    ids = session_ids(data, "test")
    assert ids is not None
    assert ids.tolist() == shuffled["session_id"].to_pylist(), "part-2 stands before part-10"
    assert dict(zip(ids.tolist(), lists, strict=True)) == whole


def test_lists_are_written_with_the_ids_of_their_sessions(
    numbers: tuple[Path, Path], tmp_path: Path
) -> None:
    data, run = numbers
    out = tmp_path / "new" / "lists.parquet"
    facts = write_recommendations(run, data, "test", out, k=8, filter_seen=True, exclude=[11, "x"])
    table = pq.read_table(out)
    assert table.schema.types == [pa.int64(), pa.list_(pa.int64()), pa.list_(pa.float32())]
    assert table.column_names == ["session_id", "item_ids", "scores"]
    recommender = Recommender.open(run)
    lists = listed(recommender.recommend(data, "test", 8, filter_seen=True, exclude=[11]))
    assert table["item_ids"].to_pylist() == lists
    stored = pq.read_table(data / "sessions" / "test")["session_id"].to_pylist()
    assert table["session_id"].to_pylist() == stored
    assert [len(scores) for scores in table["scores"].to_pylist()] == [len(i) for i in lists]
    assert facts == {
        "part": "test",
        "sessions": len(lists),
        "targets": [],
        "k": 8,
        "short_lists": sum(len(i) < 8 for i in lists),
        "unknown_excluded": 1,
        "unknown_candidates": 0,
    }
    assert facts["short_lists"] > 0
    assert [path.name for path in out.parent.iterdir()] == ["lists.parquet"]


def test_sessions_without_ids_have_no_id_column(shop: Shop, tmp_path: Path) -> None:
    table = pq.read_table(shop.data / "sessions" / "test")
    data = with_test_files(shop.data, tmp_path / "data", [table.drop_columns(["session_id"])])
    out = tmp_path / "lists.parquet"
    write_recommendations(shop.run, data, "test", out, k=3, candidates=["sku-00001", "sku-x"])
    assert pq.read_table(out)["item_ids"].to_pylist() == [["sku-00001"]] * table.num_rows
    assert pq.read_schema(out).names == ["item_ids", "scores"]


def test_a_part_without_a_session_gives_an_empty_file(shop: Shop, tmp_path: Path) -> None:
    table = pq.read_table(shop.data / "sessions" / "test")
    data = with_test_files(shop.data, tmp_path / "data", [table.slice(0, 0)])
    out = tmp_path / "lists.parquet"
    assert write_recommendations(shop.run, data, "test", out, filter_seen=True)["sessions"] == 0
    assert pq.read_table(out).num_rows == 0


def test_written_embeddings_rank_like_the_lists(
    shop: Shop, recommender: Recommender, tmp_path: Path
) -> None:
    of_items, of_sessions = tmp_path / "items.parquet", tmp_path / "sessions.parquet"
    assert write_item_embeddings(shop.run, of_items) == {"items": NUM_ITEMS, "width": 32}
    facts = write_session_embeddings(shop.run, shop.data, "test", of_sessions)
    items, sessions = pq.read_table(of_items), pq.read_table(of_sessions)
    assert items["item_id"].to_pylist() == recommender.catalogue.tolist()
    assert facts == {"part": "test", "sessions": sessions.num_rows, "width": 32}
    scores = (
        np.array(sessions["embedding"].to_pylist()) @ np.array(items["embedding"].to_pylist()).T
    )
    best = [items["item_id"][int(i)].as_py() for i in scores.argmax(1)]
    assert best == [items[0] for items in listed(recommender.recommend(shop.data, "test", 1))]
    assert sessions["session_id"].to_pylist() == session_ids(shop.data, "test").tolist()  # type: ignore[union-attr]


def test_only_files_of_the_command_are_replaced(numbers: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = numbers
    out = tmp_path / "lists.parquet"
    for k in (1, 2):
        write_recommendations(run, data, "test", out, k=k)
        assert len(pq.read_table(out)["item_ids"][0]) == k
    for content in (b"notes", b""):
        out.write_bytes(content)
        with pytest.raises(ConfigError, match="holds something else"):
            write_recommendations(run, data, "test", out)
        assert out.read_bytes() == content
    pq.write_table(pa.table({"click": [1]}), out)
    with pytest.raises(ConfigError, match="holds something else"):
        write_item_embeddings(run, out)
    with pytest.raises(ConfigError, match="expected a name that ends in"):
        write_recommendations(run, data, "test", tmp_path / "lists.csv")


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    schema = pa.schema({"number": pa.int64()})

    def write_half() -> None:
        with new_parquet(tmp_path / "a.parquet", schema) as write:
            write(pa.table({"number": [1]}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []
    with new_parquet(tmp_path / "a.parquet", schema):
        pass
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0


def test_similar_items_are_the_nearest_by_cosine(shop: Shop) -> None:
    ids, vectors = Recommender.open(shop.run).item_embeddings()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    run = api.Run.open(shop.run)
    frame = run.similar_items([ids[5], ids[0]], k=4)
    assert frame.columns.tolist() == ["similar_to", "rank", "item_id", "score"]
    for position in (5, 0):
        cosines = unit @ unit[position]
        best = np.argsort(-np.where(np.arange(len(ids)) == position, -2, cosines))[:4]
        own = frame[frame.similar_to == ids[position]]
        assert own.item_id.tolist() == ids[best].tolist()
        np.testing.assert_allclose(own.score, cosines[best], rtol=1e-5)
    arguments = [
        "recommend",
        str(shop.run),
        "--similar",
        f"{ids[5]},{ids[0]}",
        "--k",
        "4",
        "--json",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    lists = [[e["item_id"] for e in item["similar"]] for item in json.loads(done.stdout)["items"]]
    assert [*chain(*lists)] == frame.item_id.tolist()
    for option in (["--timeout", "3"], ["--keep-seen"], ["--items", "a"]):
        wrong = CliRunner().invoke(app, [*arguments, *option])
        assert "goes with --k and --json alone" in str(wrong.exception)
    frame = run.similar_items(ids[5], k=4)
    assert frame.similar_to.tolist() == [ids[5]] * 4
    with pytest.raises(ConfigError, match="'nope' is not in the catalogue"):
        run.similar_items("nope")
    with pytest.raises(ConfigError, match="expected 1 to"):
        run.similar_items(ids[0], k=len(ids))
