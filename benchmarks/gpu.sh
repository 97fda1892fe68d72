#!/usr/bin/env bash
# What needs a GPU, in slices that end by themselves, on a machine with one GPU and perhaps no network:
#   benchmarks/gpu.sh [--seconds 540] [--jobs 3] [--tiny] [tests] [bench] [cells]
# See benchmarks/on_gpu.py. Packages that such a machine lacks are taken from wheels/, filled beforehand by
#   pip wheel --no-deps -c constraints.txt -w wheels hydra-core omegaconf antlr4-python3-runtime
# (add what it lacks besides: pytest pytest-timeout hypothesis mpmath tqdm timm scikit-learn ...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

site=$PWD/build/site
export PYTHONPATH=$PWD:$PWD/scripts:$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3

missing() {
    "$python" - <<'PY'
from importlib.util import find_spec
needed = dict(torch="torch", torchvision="torchvision", timm="timm", hydra="hydra-core", omegaconf="omegaconf",
              antlr4="antlr4-python3-runtime", sklearn="scikit-learn", safetensors="safetensors", tqdm="tqdm",
              pytest="pytest", numpy="numpy")
print(*(package for module, package in needed.items() if find_spec(module) is None))
PY
}

if [ -n "$(missing)" ] && compgen -G "wheels/*.whl" >/dev/null; then
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --upgrade \
        --root-user-action ignore --find-links wheels --target "$site" wheels/*.whl
fi
lacking=$(missing)
if [ -n "$lacking" ]; then
    echo "gpu.sh: $python lacks $lacking: fill wheels/ where the internet is," \
        "pip wheel --no-deps -c constraints.txt -w wheels $lacking" >&2
    exit 2
fi
exec "$python" benchmarks/on_gpu.py "$@"
