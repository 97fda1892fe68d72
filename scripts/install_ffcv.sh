#!/usr/bin/env bash
# Install FFCV and the system libraries that it needs to build: scripts/install_ffcv.sh [PYTHON]
# PYTHON defaults to that of the active environment, else .venv. Does nothing if FFCV is installed and loads.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-.venv}}
python=${1:-$environment/bin/python}
packages="libopencv-dev libturbojpeg0-dev pkg-config g++"

# Load FFCV's library, which loads OpenCV and TurboJPEG; importing the package would take seconds.
has_ffcv() {
    "$python" - <<'EOF' 2>/dev/null
import ctypes, importlib.util as util, pathlib
folder = pathlib.Path(util.find_spec("ffcv").origin).parent
ctypes.CDLL(str(next(folder.glob("_libffcv*"))))
assert util.find_spec("scipy")
EOF
}

has_libraries() {
    command -v c++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg &&
        "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null
}

fail() {
    echo "install_ffcv.sh: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python is missing: run make test first, or give the path of a Python"
has_ffcv && exit 0

if ! has_libraries; then
    [ "$("$python" -c 'import sys; print(sys.base_prefix)')" != /usr ] || packages="$packages python3-dev"
    conda="with conda: conda install -c conda-forge opencv libjpeg-turbo pkg-config cxx-compiler; then rerun this script"
    command -v apt-get >/dev/null || fail "FFCV needs OpenCV and TurboJPEG, and apt-get is missing; $conda"
    as_root=
    if [ "$(id -u)" != 0 ]; then
        as_root="sudo -n"
        $as_root true 2>/dev/null || fail "installing needs root: sudo apt-get install $packages; $conda"
    fi
    echo "Installing $packages for FFCV with apt-get (about a minute, once)"
    apt_options="-o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60"
    # shellcheck disable=SC2086
    {
        $as_root apt-get $apt_options -qq update &&
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get $apt_options -qq install -y --no-install-recommends $packages
    } >/dev/null || fail "apt-get could not install $packages; $conda"
fi

echo "Building FFCV (about a minute, once)"
pip="$python -m pip --quiet --disable-pip-version-check"
if $pip show ffcv >/dev/null 2>&1; then # installed, but it does not load: its libraries have changed
    $pip uninstall -y ffcv
    pip="$pip --no-cache-dir"
fi
$pip install --retries 1 -c constraints.txt -e '.[ffcv]' ||
    fail "pip could not build FFCV; see the output above"
has_ffcv || fail "FFCV is installed but does not load: $python -c 'import ffcv' shows the reason"
