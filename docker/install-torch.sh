#!/bin/sh
# Install torch, as pinned in pyproject.toml, from where TORCH_WHEELS says:
#   docker/wheels   the wheels in that folder
#   http(s)://...   an index of wheels
#   cpu, cu130 ...  PyTorch's own build of that name (`uv pip install --torch-backend`)
#   empty           PyPI, with the libraries of CUDA
set -eu
from=${1#./}
from=${from%/}
folder=$2
# the project's settings would refuse an index that does not tell when a file was uploaded
install="uv pip install --quiet --no-config"
torch=$(sed -n 's/^ *"\(torch==[^"]*\)",.*/\1/p' pyproject.toml)

case $from in
"") exit 0 ;;
docker/wheels)
    ls "$folder"/torch-*.whl >/dev/null 2>&1 || {
        echo "TORCH_WHEELS is docker/wheels, but no torch-*.whl is there. Put one in." >&2
        exit 1
    }
    $install --no-deps --no-index --find-links "$folder" "$torch"
    ;;
*://*) $install --no-deps --index-url "$from" "$torch" ;;
*/*)
    echo "TORCH_WHEELS is $from, expected docker/wheels, an address, the name of a build, or none." >&2
    exit 1
    ;;
*) $install --no-deps --torch-backend "$from" "$torch" ;;
esac
