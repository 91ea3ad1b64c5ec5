"""A small log as a frame, split as the parts of a large one are."""

import numpy as np
import pandas as pd

from pipeline.preprocessing.split import rows_of, split_sessions
from pipeline.recipe.preprocess import Preprocess


def split_frame(recipe: Preprocess, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Interactions of each part, in the order of the log."""
    whole = frame.sort_values(["session_id", "timestamp"], kind="stable")
    groups = whole.groupby("session_id", sort=True)["timestamp"]
    lengths, ends = groups.size().to_numpy(), groups.max().to_numpy()
    places = split_sessions(recipe, ends, lengths)
    masks = rows_of(recipe, places, lengths)
    assert all(rows.dtype == np.bool_ and len(rows) == len(frame) for rows in masks.values())
    return {name: whole[rows].sort_index().reset_index(drop=True) for name, rows in masks.items()}
