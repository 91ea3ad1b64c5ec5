# %% [markdown]
# # A log with errors
#
# After this page you can read a log with broken lines, duplicates and wrong clocks, and make
# sessions of its visitors.
#
# ## Make such a log
#
# 800 visitors read articles; some come back after three hours. One row is doubled, one line is cut,
# and one clock was not set.

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
# ## Clean it
#
# | problem | key |
# | --- | --- |
# | visitors, no sessions | `session_gap`: a longer break begins a new session |
# | wrong clocks | `earliest` and `latest`: other rows are dropped |
# | duplicates | `duplicates: drop` keeps the first of equal rows |
#
# Lines with another number of columns are always dropped. Every dropped row is counted.

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
# `data/report.html` has the same counts, with charts and the drift between training and test.
#
# Next: [read a log](../how-to/logs.md) has all rules; [a first model](getting_started.md) trains on
# the result.
