"""What describes items need not be sent: the server knows it from training."""

from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest

from pipeline.data.fitted import Fitted
from pipeline.serve.runtime.request import RequestReader
from pipeline.serve.runtime.request_encoder import Encoder
from tests.conftest import Shop


@pytest.fixture(scope="module")
def encoder(shop: Shop) -> Encoder:
    return Encoder(next(Path(shop.repository).glob("*/*/encoder.json")).parent)


def encode(encoder: Encoder, **tensors: np.ndarray) -> dict[str, np.ndarray]:
    return encoder.encode(RequestReader(encoder).read(tensors).rows)


def test_item_features_are_filled_in_from_the_catalogue(shop: Shop, encoder: Encoder) -> None:
    clicks = pyarrow.csv.read_csv(shop.clicks).to_pandas().drop_duplicates("product")
    vocabulary = set(Fitted.read(shop.run).item.values.to_pylist())
    clicks = clicks[clicks["product"].isin(vocabulary)].head(60)
    item = clicks["product"].to_numpy(object).astype(bytes).astype(object).reshape(6, 10)
    sent = encode(
        encoder,
        item_id=item,
        category=clicks["category"].to_numpy(object).astype(bytes).astype(object).reshape(6, 10),
        price=clicks["price"].to_numpy(np.float64).reshape(6, 10),
    )
    unsent = encode(encoder, item_id=item)
    assert set(encoder.item_features) == {"category", "price"}
    for name in ("category", "price"):
        assert sent[name].dtype == unsent[name].dtype
        np.testing.assert_array_equal(unsent[name], sent[name])
        assert len(np.unique(unsent[name])) > 5


def test_unknown_item_has_missing_features(encoder: Encoder) -> None:
    encoded = encode(
        encoder,
        item_id=np.array([[b"no such item", b"", b"sku-00001"]], object),
        length=np.array([[3]], np.int32),
    )
    assert encoded["category"][0, :2].tolist() == [1, 1]  # as a missing value
    assert encoded["category"][0, 2] >= 3
    assert encoded["price"][0, :2].tolist() == [0, 0]
    short = encode(
        encoder,
        item_id=np.array([[b"sku-00001", b"junk"], [b"sku-00002", b"sku-00003"]], object),
        length=np.array([[1], [2]], np.int32),
    )
    assert short["category"][0, :2].tolist() == [encoded["category"][0, 2], 0]  # padding stays 0
