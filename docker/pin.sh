#!/usr/bin/env bash
# Write the digests of the images into .env, so that a tag that moves changes nothing here.
#
#   docker/pin.sh                            all images of .env
#   docker/pin.sh BASE_IMAGE GRAFANA_IMAGE   these alone; NVIDIA's Triton has more than 10 GB
#
# Pulls each image by its tag as it is today. Run it again, for example every month, for the
# security updates of the base.
set -euo pipefail
cd "$(dirname "$0")/.."
settings=("$@")
[ $# -gt 0 ] || settings=(BASE_IMAGE TRITON_IMAGE PROMETHEUS_IMAGE GRAFANA_IMAGE)
for setting in "${settings[@]}"; do
    image=$(sed -n "s/^$setting=\([^@]*\).*/\1/p" .env)
    [ -n "$image" ] || { echo "docker/pin.sh: .env has no image $setting." >&2; exit 2; }
    docker pull --quiet "$image" >/dev/null
    digest=$(docker image inspect --format '{{index .RepoDigests 0}}' "$image")
    sed -i "s|^$setting=.*|$setting=$image@${digest#*@}|" .env
    echo "$setting=$image@${digest#*@}"
done
