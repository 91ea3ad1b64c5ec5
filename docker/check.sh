#!/usr/bin/env bash
# Whether the files of compose and Kubernetes are valid; needs uv, and no engine or cluster. The
# compose file is for `docker compose` 2 and for docker-compose 1.29. For 2 it is compared with the Compose specification, and read by `docker compose` itself
# where that is installed; 1.29 is installed for the occasion and reads it.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT

uvx --quiet check-jsonschema==0.39.0 --quiet --builtin-schema vendor.compose-spec docker-compose.yml
readers=()
if docker compose version >/dev/null 2>&1; then readers+=("docker compose"); fi

# 1.29.2, the last of its line, asks for a PyYAML that no longer builds; it works with this one
echo 'pyyaml==6.0.3' >"$environment/overrides"
uv venv --quiet --python 3.11 "$environment/venv"
uv pip install --quiet --python "$environment/venv/bin/python" --overrides "$environment/overrides" \
    docker-compose==1.29.2
readers+=("$environment/venv/bin/docker-compose")

for reader in "${readers[@]}"; do
    for profiles in cpu gpu batch cpu,dask cpu,monitoring gpu,monitoring; do
        COMPOSE_PROFILES=$profiles $reader config --quiet
    done
done
echo "docker-compose.yml: valid by the specification and for ${readers[*]##*/}"

resources=()
for file in deploy/kubernetes/*.yaml; do
    case $file in */kustomization.yaml | */prometheus-adapter.yaml) ;; *) resources+=("$file") ;; esac
done
uvx --quiet kubernetes-validate==1.37.0 --strict -k 1.32 --quiet --no-warn "${resources[@]}"
echo "${resources[*]}: valid for Kubernetes 1.32"
