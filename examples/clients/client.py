"""Ask a server for recommendations by HTTP, with nothing but Python's standard library.

    python client.py http://127.0.0.1:8000 sku-00001 sku-00002

With the package there is less to write, and gRPC: `pipeline.Client(url).recommend(sessions, k=5)`.
"""

import json
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def recommend(url: str, items: list[str], k: int) -> list[str]:
    """Return the ids of the next items of one session, best first."""
    inputs = [
        # ids of a log of numbers are INT64
        {"name": "item_id", "shape": [1, len(items)], "datatype": "BYTES", "data": items},
        {"name": "k", "shape": [1, 1], "datatype": "INT32", "data": [k]},
    ]
    body = json.dumps({"inputs": inputs, "outputs": [{"name": "item_ids"}]}).encode()
    with urlopen(Request(f"{url}/v2/models/recommender/infer", body), timeout=5) as answer:
        (output,) = json.load(answer)["outputs"]
    return output["data"]


if __name__ == "__main__":
    url, *items = sys.argv[1:]
    try:
        print(*recommend(url, items, k=5), sep="\n")
    except HTTPError as error:
        sys.exit(json.load(error)["error"])
