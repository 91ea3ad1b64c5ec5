"""From the requests of a server to the result of its experiment."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export
from pipeline.monitoring.run import monitor
from pipeline.serve.client.client import Client
from pipeline.serve.proxy.experiment import read_experiment
from pipeline.serve.request_log.options import RequestLogOptions
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from tests.conftest import Shop


@pytest.mark.slow
def test_log_of_a_server_with_later_clicks_gives_the_hit_rates_of_its_arms(
    shop: Shop, tmp_path: Path
) -> None:
    """The challenger never shows the item that every second session clicks next."""
    repository = tmp_path / "repository"
    export(shop.run, repository)
    export(shop.run, repository, ExportOptions(name="challenger"))
    test = read_experiment("spring,challenger=0.5", repository)
    options = RequestLogOptions(directory=tmp_path / "log")
    shown: dict[str, list[list[str]]] = {"control": [], "challenger": []}
    clicks = []
    with (
        running_server(
            repository, ports=free_ports(), experiment=test, request_log=options
        ) as server,
        Client(f"grpc://{server.grpc_url}") as client,
    ):
        for number in range(120):
            session = f"session-{number}"
            arm = "control" if test.arm_of(session) is None else "challenger"
            answer = client.recommend([{"item_id": ["sku-00001"]}], 4, session=session)
            assert answer.version == (1 if arm == "control" else 2)
            items = answer.items[0].tolist()
            shown[arm].append(items)
            later = datetime.now(UTC) + timedelta(seconds=1)
            is_hit = number % 2 == 0 and arm == "control"
            clicks.append((session, items[2] if is_hit else "sku-none", later.isoformat()))
    frame = pd.DataFrame(clicks, columns=["session", "product", "time"])
    frame.to_csv(tmp_path / "later.csv", index=False)
    result = monitor([tmp_path / "log"], shop.data, clicks=[tmp_path / "later.csv"], cutoffs=(2, 4))
    [experiment] = result.experiments
    assert experiment.fits_shares
    assert {arm.name: arm.sessions for arm in experiment.arms} == {
        arm: len(lists) for arm, lists in shown.items()
    }
    control, challenger = (arm.online for arm in experiment.arms)
    assert control is not None
    assert challenger is not None
    hits = sum(c[1] != "sku-none" for c in clicks) / len(shown["control"])
    assert control.metrics["hit_rate@4"].value == pytest.approx(hits)
    assert control.metrics["mrr@4"].value == pytest.approx(hits / 3)
    assert control.metrics["hit_rate@2"].value == 0
    assert challenger.metrics["hit_rate@4"].value == 0
    assert [version.version for version in result.versions] == ["challenger v2", "recommender v1"]
