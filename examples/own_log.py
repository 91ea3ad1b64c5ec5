# %% [markdown]
# # Your own log, dirt included
#
# Logs have broken lines, double rows, bots and clocks that are wrong. Preprocessing counts what
# it drops and repairs, and says so. This page makes such a log and reads the report.

# %%
import random
from pathlib import Path

import pandas as pd

from pipeline import Recipe, preprocess

draw = random.Random(0)
rows = []
for visitor in range(800):
    start = pd.Timestamp("2026-03-01", tz="UTC") + pd.Timedelta(minutes=draw.randrange(20_000))
    for step in range(draw.randrange(2, 9)):
        if step == 4:  # back after a break: a new session of the same visitor
            start += pd.Timedelta(hours=3)
        time = (start + pd.Timedelta(seconds=40 * step)).isoformat()
        group = visitor % 10
        item = f"article-{group}-{draw.randrange(12)}"
        rows.append(f"visitor-{visitor},{item},{time},{draw.choice(['phone', 'desktop'])}")
lines = ["visitor,article,time,device", *rows]
lines.insert(50, rows[10])  # a row twice
lines.insert(90, "visitor-3,article-1-1")  # a line that was cut
lines.append("visitor-9,article-1-1,1970-01-01T00:00:00Z,phone")  # a clock that was not set
Path("log.csv").write_text("\n".join(lines) + "\n")

# %% [markdown]
# The log has visitors and no sessions: `session_gap` begins a new one after half an hour. Rows
# before `earliest` are dropped, and so are rows that repeat an earlier one.

# %%
recipe = Recipe.from_dict(
    {
        "preprocess": {
            "session": "visitor",
            "session_gap": "30m",
            "item": "article",
            "timestamp": {"column": "time", "unit": "iso", "earliest": "2026-01-01"},
            "features": [{"name": "device", "kind": "categorical", "of": "session"}],
            "duplicates": "drop",
            "split": {"test": "2d"},
        }
    },
    "own_log",
)
data = preprocess(recipe, "log.csv", out="data")
print(data.facts["rows"])
print(pd.DataFrame(data.facts["sessions"]).T)

# %% [markdown]
# `data/report.html` shows the same with charts, and what drifts between training and test. The
# next steps are those of [a first model](getting_started.md).
