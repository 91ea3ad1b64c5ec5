"""Files read and sorted, as preprocessing does before it learns anything."""

import tempfile
from collections import defaultdict
from pathlib import Path

from pipeline.preprocessing.blocks import to_frame
from pipeline.preprocessing.cluster import workers
from pipeline.preprocessing.sorting.log import read_sorted
from pipeline.preprocessing.sorting.spill import read
from pipeline.recipe.preprocess import Preprocess


def sort(chosen: Preprocess, files: list[Path]) -> tuple[dict, dict[str, list]]:
    """Facts, and the interactions of each session by time."""
    with tempfile.TemporaryDirectory() as folder, workers() as pool:
        log = read_sorted(chosen, files, Path(folder), pool)
        sessions: dict[str, list] = defaultdict(list)
        for shard in log.shards:
            columns = to_frame(read(shard.path)).astype(object)
            columns = columns.where(columns.notna(), None)
            names = ["session_id", "timestamp", "item_id"]
            names += [feature.name for feature in chosen.features]
            for session, *row in columns[names].itertuples(index=False):
                row[1] = None if row[1] is None else str(row[1])
                sessions[str(session)].append(tuple(row))
        facts = log.report.facts(log.rows)
        assert facts["kept"] == sum(map(len, sessions.values()))
        return facts, dict(sessions)
