#!/bin/sh
# Ask a server for recommendations with curl:  sh client.sh http://127.0.0.1:8000 sku-00001 sku-00002
set -eu
url=$1
shift
items=$(printf '"%s",' "$@") # ids of a log of numbers: without the quotes, and datatype INT64
curl --fail-with-body --silent --show-error --max-time 5 "$url/v2/models/recommender/infer" --data @- <<JSON
{"inputs": [
  {"name": "item_id", "shape": [1, $#], "datatype": "BYTES", "data": [${items%,}]},
  {"name": "k", "shape": [1, 1], "datatype": "INT32", "data": [5]}],
 "outputs": [{"name": "item_ids"}]}
JSON
