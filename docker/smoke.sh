#!/usr/bin/env bash
# Try the compose file with the engine that is there, on a CPU: build, up, ask over HTTP and gRPC
# from outside, replace the model while asking, kill and restart every service, down.
#
#   docker/smoke.sh               needs docker, `docker compose` 2 or docker-compose 1.29, and curl
#   docker/smoke.sh --no-cache    builds all layers anew
#
# It has a project, ports and volumes of its own and removes them at the end; the image stays.
# TORCH_WHEELS, BASE_IMAGE and the other settings of .env may be given in the environment. With none
# given, torch comes from a wheel in docker/wheels or in PIP_FIND_LINKS, else from PyTorch's CPU
# build, else, where that cannot be reached, from PyPI with the libraries of CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
docker version >/dev/null 2>&1 || {
    echo "docker/smoke.sh: no Docker engine answers. Start one, or set DOCKER_HOST to it." >&2
    exit 2
}

export COMPOSE_PROJECT_NAME=pipeline-smoke COMPOSE_PROFILES=cpu
export HTTP_PORT=${HTTP_PORT:-18000} GRPC_PORT=${GRPC_PORT:-18001} METRICS_PORT=${METRICS_PORT:-18002}
export BUILD_NETWORK=${BUILD_NETWORK:-host} RELOAD_SECONDS=1 BIND=127.0.0.1
export LOGS='' RECIPE=demo.yaml NAME=demo CLUSTER='' PREPROCESS_OPTIONS='' EXPORT_OPTIONS='' TRAIN_OPTIONS=''
image=session-pipeline:cpu
scratch=$(mktemp -d)
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi

compose() { "${compose[@]}" "$@"; }
say() { printf '\n[%4d s] %s\n' "$SECONDS" "$*"; }
fail() { say "FAILED: $*"; exit 1; }

finish() {
    local status=$?
    touch "$scratch/over"
    wait
    if [ $status -ne 0 ]; then
        compose ps -a 2>/dev/null || compose ps
        compose logs --no-color --tail 30
    fi
    compose down --volumes --timeout 10 >"$scratch/down" 2>&1 || cat "$scratch/down"
    rm -rf "$scratch"
    [ $status -eq 0 ] && say "Passed."
    exit $status
}
trap finish EXIT

# --- asking from outside, through the published ports ---------------------------------------------
body='{"inputs": [
  {"name": "item_id", "shape": [1, 2], "datatype": "BYTES", "data": ["sku-00003", "sku-00010"]},
  {"name": "timestamp", "shape": [1, 2], "datatype": "BYTES", "data": ["2026-01-10 10:00:00", "2026-01-10 10:01:00"]},
  {"name": "category", "shape": [1, 2], "datatype": "BYTES", "data": ["category-01", "category-01"]},
  {"name": "action", "shape": [1, 2], "datatype": "BYTES", "data": ["view", "view"]},
  {"name": "price", "shape": [1, 2], "datatype": "FP64", "data": [1.0, 2.0]},
  {"name": "device", "shape": [1, 1], "datatype": "BYTES", "data": ["phone"]},
  {"name": "k", "shape": [1, 1], "datatype": "INT32", "data": [5]}]}'

http() { curl -sS --max-time 20 "http://127.0.0.1:$HTTP_PORT/v2/models/recommender/infer" -d "$body"; }
http_items() { http | grep -oE 'sku-[0-9]+' | paste -sd ' '; }
version() { http | sed -nE 's/.*"model_version":"([0-9]+)".*/\1/p'; }
grpc_items() {
    docker run --rm --network host "$image" recommend "grpc://127.0.0.1:$GRPC_PORT" --k 5 \
        --items sku-00003,sku-00010 --column category=category-01,category-01 \
        --column "timestamp=2026-01-10 10:00:00,2026-01-10 10:01:00" --column action=view,view \
        --column price=1,2 --column device=phone | grep -oE 'sku-[0-9]+' | paste -sd ' '
}
ask() {
    local over_http over_grpc
    over_http=$(http_items)
    over_grpc=$(grpc_items)
    [ "$(wc -w <<<"$over_http")" = 5 ] || fail "HTTP gave '$over_http', expected 5 items: $(http)"
    [ "$over_http" = "$over_grpc" ] || fail "HTTP gave '$over_http', gRPC '$over_grpc'"
    echo "version $(version), over HTTP and gRPC: $over_http"
}
up() { # WHAT SERVICES...
    local what=$1
    shift
    compose up -d "$@" >"$scratch/up" 2>&1 || { tail -n 5 "$scratch/up"; fail "$what"; }
}
all_are_up_to_date() {
    local stage
    for stage in preprocess train export; do
        is_up_to_date "$stage" || fail "$stage worked again: $(last_words "$stage")"
    done
}
wait_until() { # SECONDS COMMAND...
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}
of_service() { # SERVICE FORMAT
    docker ps -a --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \
        --filter "label=com.docker.compose.service=$1" --format "$2" | head -n 1
}
state() { of_service "$1" '{{.State}}'; }
id_of() { of_service "$1" '{{.ID}}'; }
last_words() { compose logs --no-color --tail 1 "$1" | tail -n 1; }
has_written() { [[ $(compose logs --no-color --tail 3 "$1") == *Wrote\ * ]]; }
is_up_to_date() { [[ $(last_words "$1") == *'is up to date.'* ]]; }
recommended() { # the client of this `up`: its container may be the one of the last, with its log
    wait_until 60 ended client || return 1
    local id
    id=$(id_of client)
    [ "$(docker inspect --format '{{.State.ExitCode}}' "$id")" = 0 ] || return 1
    [[ $(docker logs --since "$(docker inspect --format '{{.State.StartedAt}}' "$id")" "$id") == *sku-* ]]
}
ended() { [ "$(state "$1")" = exited ]; }
in_volumes() { docker run --rm -i "${volumes[@]}" --entrypoint sh "$image" -c "$1"; }
volumes=()
for volume in data runs models; do volumes+=(-v "${COMPOSE_PROJECT_NAME}_$volume:/srv/pipeline/$volume"); done

# --- build, up, ask -------------------------------------------------------------------------------
say "With $(docker version --format '{{.Server.Version}}'), $(compose version | head -n 1)"
compose down --volumes >/dev/null 2>&1 || true
for profile in cpu gpu batch dask monitoring; do COMPOSE_PROFILES=$profile compose config -q; done

if [ -z "${TORCH_WHEELS+set}" ]; then
    for folder in docker/wheels ${PIP_FIND_LINKS:-}; do
        for wheel in "$folder"/torch-*.whl; do
            [ -e "$wheel" ] || continue
            [ "$folder" = docker/wheels ] || cp "$wheel" docker/wheels/
            export TORCH_WHEELS=docker/wheels
        done
    done
fi
say "Building, torch from ${TORCH_WHEELS-PyTorch\'s CPU build}"
if ! compose build "$@" >"$scratch/build" 2>&1; then
    tail -n 5 "$scratch/build"
    if [ -n "${TORCH_WHEELS+set}" ] || ! grep -q 'install-torch.sh' <(tail -n 5 "$scratch/build"); then
        fail "the image was not built"
    fi
    say "Building again, torch from PyPI"
    export TORCH_WHEELS=
    compose build "$@" >"$scratch/build" 2>&1 || { tail -n 20 "$scratch/build"; fail "the image was not built"; }
fi
user=$(docker image inspect --format '{{.Config.User}}' "$image")
[ "$user" = 1000:1000 ] || fail "the image runs as '$user'"
# of root, who sees all; what the base image brings along is not ours
tools=$(docker run --rm --user 0 --entrypoint sh "$image" -c \
    'ls -d /usr/bin/gcc /usr/bin/cc /usr/bin/make /opt/venv/bin/uv /tools /build /root/.cache /tmp/* 2>/dev/null; echo looked')
[ "$tools" = looked ] || fail "the image holds $tools"
setuid=$(docker run --rm --user 0 --entrypoint find "$image" / -xdev -type f -perm /6000)
[ -z "$setuid" ] || fail "the image holds programs that change the user: $setuid"
docker run --rm --entrypoint cat "$image" /opt/sbom.cdx.json | grep -q '"name": "tritonserver"' \
    || fail "the image has no bill of materials"
bytes=$(docker image inspect --format '{{.Size}}' "$image")
[ -z "${TORCH_WHEELS-cpu}" ] || [ "$bytes" -lt 2500000000 ] || fail "the image has $bytes bytes, expected under 2.5 GB"
echo "$image: $(awk '{printf "%.2f GB", $1 / 1e9}' <<<"$bytes"), user $user, no compiler, no uv, no cache, no setuid"

up "up"
recommended || fail "the client printed no recommendation"
compose logs --no-color --tail 4 client
say "First recommendation"
ask
curl -sS --max-time 5 "http://127.0.0.1:$METRICS_PORT/metrics" | grep '^nv_inference' >/dev/null || fail "no metrics"
code=$(curl -s -o /dev/null -w '%{http_code}' -X POST "http://127.0.0.1:$HTTP_PORT/v2/repository/index")
[ "$code" = 403 ] || fail "the call that lists models answers $code, expected 403"

# --- the same again does nothing twice ------------------------------------------------------------
say "Up again"
up "up again"
recommended || fail "the client printed no recommendation"
all_are_up_to_date
echo "preprocess, train and export: up to date"

# --- a newer export takes over while asked --------------------------------------------------------
say "A newer model, while asking"
(
    while [ ! -e "$scratch/over" ]; do
        answer=$(curl -s --max-time 20 -w ' %{http_code}' \
            "http://127.0.0.1:$HTTP_PORT/v2/models/recommender/infer" -d "$body" || true)
        of=$(sed -nE 's/.*"model_version":"([0-9]+)".*/version \1/p' <<<"$answer")
        echo "${answer##* } $of: $(grep -oE 'sku-[0-9]+' <<<"$answer" | paste -sd ' ')"
    done >"$scratch/asked"
) &
export TRAIN_OPTIONS='--set train.seed=7 --set train.epochs=1'
up "the newer export" train export
wait_until 60 ended export || fail "export does not end"
newer() { [ "$(version)" = 2 ]; }
wait_until 60 newer || fail "version 2 is not served, but $(version)"
sleep 2
touch "$scratch/over"
wait
rm "$scratch/over"
sort "$scratch/asked" | uniq -c
if grep -qvE '^200 version [12]: sku' "$scratch/asked"; then fail "some requests got no answer"; fi
[ "$(sed 's/.*: //' "$scratch/asked" | sort -u | wc -l)" = 2 ] || fail "expected one list of each version"
[ "$(head -n 1 "$scratch/asked")" != "$(tail -n 1 "$scratch/asked")" ] || fail "the newer model gives the same"
ask

# --- kill each in the middle of its work; up again completes it -----------------------------------
export NAME=killed TRAIN_OPTIONS='--set train.epochs=2'
working() { # a stage writes into a hidden directory until it is done
    [[ $(in_volumes "ls -A $1") == *.killed.partial* ]]
}
earlier=()
before=
for stage in preprocess train export; do
    say "Killing $stage at work"
    folder=$(case $stage in preprocess) echo data ;; train) echo runs ;; export) echo models ;; esac)
    compose up -d >"$scratch/up" 2>&1 &
    up=$!
    wait_until 120 working "$folder" || fail "$stage does not begin"
    [ "$stage" = export ] || sleep "0.$((RANDOM % 10))" # which is over in a moment
    compose kill -s SIGKILL "$stage" >/dev/null 2>&1
    too_quick=false
    if wait "$up"; then too_quick=true; fi
    [[ " $(in_volumes "ls $folder" | tr '\n' ' ')" != *' killed '* ]] || too_quick=true
    if $too_quick; then # it had ended, or was about to: then what it wrote is whole
        has_written "$stage" || fail "half of $folder/killed is there"
        echo "$stage was done before it was killed"
    else
        echo "nothing half done is in $folder"
    fi
    if [ -n "$before" ]; then # killed in the round before, it was completed in this one
        has_written "$before" || fail "$before was not done: $(last_words "$before")"
        echo "$before, killed before, is done now"
    fi
    for other in "${earlier[@]}"; do
        is_up_to_date "$other" || fail "$other worked again: $(last_words "$other")"
        echo "$other, done before, was not done again"
    done
    earlier+=(${before:+"$before"})
    before=$stage
    if $too_quick; then
        earlier+=("$stage")
        before=
    fi
done
for service in triton client demo-clicks; do
    say "Killing $service"
    compose up -d >"$scratch/up" 2>&1 &
    up=$!
    running_or_over() { [ "$(state "$service")" = running ] || ! kill -0 "$up" 2>/dev/null; }
    wait_until 120 running_or_over || fail "$service does not begin"
    compose kill -s SIGKILL "$service" >/dev/null 2>&1 || echo "$service was too quick"
    wait "$up" || true
done
say "Up again"
up "up after all were killed"
recommended || fail "the client printed no recommendation"
all_are_up_to_date
left=$(in_volumes 'ls -A data runs models' | grep partial || true)
[ -z "$left" ] || fail "left behind: $left"
ask
for service in triton client; do
    compose restart --timeout 20 "$service" >/dev/null 2>&1 || fail "restart of $service"
done
answering() { [ "$(http_items | wc -w)" = 5 ]; }
wait_until 60 answering 2>/dev/null || fail "no answer after a restart"
ask

# --- down -----------------------------------------------------------------------------------------
say "Down"
begin=$SECONDS
compose down --timeout 20 >"$scratch/down" 2>&1 || { cat "$scratch/down"; fail "down"; }
[ $((SECONDS - begin)) -lt 20 ] || fail "a container did not end within 20 seconds"
[ -z "$(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME")" ] || fail "containers are left"
