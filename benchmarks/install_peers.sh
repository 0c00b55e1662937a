#!/usr/bin/env bash
# Install the peers that the benchmarks measure into the Python given (default: .venv/bin/python): learn2learn 0.2.0, JAX.
# learn2learn's last release does not build by a plain pip install on Python 3.11 and later: its stale C files must be made again.
set -euo pipefail
python=${1:-$(dirname "$0")/../.venv/bin/python}
"$python" -m pip install --quiet cython 'setuptools<81' wheel
CYTHON_FORCE_REGEN=1 "$python" -m pip install --quiet --use-pep517 --no-build-isolation --no-deps \
  --config-settings=--global-option=build_ext learn2learn==0.2.0
"$python" -m pip install --quiet requests tqdm scipy gym==0.26.2
"$python" -m pip install --quiet jax || echo "JAX could not be installed."
"$python" -W ignore -c 'import learn2learn; print("learn2learn", learn2learn.__version__)'
