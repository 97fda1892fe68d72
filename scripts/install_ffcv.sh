#!/usr/bin/env bash
# FFCV, and the system's libraries that it is built against: scripts/install_ffcv.sh [PYTHON]
# PYTHON is that of the active environment if not given, else .venv's. Does nothing where all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-.venv}}
python=${1:-$environment/bin/python}
packages="libopencv-dev libturbojpeg0-dev pkg-config g++"

# FFCV's library loads, and so do OpenCV and TurboJPEG; importing the whole of it would take seconds.
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

command -v "$python" >/dev/null || fail "there is no $python: run make test first, or say which Python"
has_ffcv && exit 0

if ! has_libraries; then
    [ "$("$python" -c 'import sys; print(sys.base_prefix)')" != /usr ] || packages="$packages python3-dev"
    elsewhere="elsewhere: conda install -c conda-forge opencv libjpeg-turbo pkg-config cxx-compiler; then run this again"
    command -v apt-get >/dev/null || fail "FFCV is built against OpenCV and TurboJPEG, and there is no apt-get; $elsewhere"
    as_root=
    if [ "$(id -u)" != 0 ]; then
        as_root="sudo -n"
        $as_root true 2>/dev/null || fail "installing takes root: sudo apt-get install $packages; $elsewhere"
    fi
    echo "Installing $packages for FFCV (apt-get, about a minute once)"
    quick="-o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60"
    # shellcheck disable=SC2086
    {
        $as_root apt-get $quick -qq update &&
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get $quick -qq install -y --no-install-recommends $packages
    } >/dev/null || fail "apt-get could not install $packages; $elsewhere"
fi

echo "Building FFCV (about a minute once)"
pip="$python -m pip --quiet --disable-pip-version-check"
if $pip show ffcv >/dev/null 2>&1; then # it is there, but does not load: built against libraries that are gone
    $pip uninstall -y ffcv
    pip="$pip --no-cache-dir"
fi
$pip install --retries 1 -c constraints.txt -e '.[ffcv]' ||
    fail "pip could not build FFCV, see above"
has_ffcv || fail "FFCV is installed, but does not load: $python -c 'import ffcv' says why"
