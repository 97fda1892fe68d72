#!/usr/bin/env bash
# What needs a GPU, in time slices, on a machine with one GPU and perhaps no network:
#   benchmarks/gpu.sh [--seconds 540] [--jobs 3] [--tiny] [tests] [bench] [cells] [-- SWEEP_OPTIONS]
#
#   tests     tests/gpu; its output goes to $OUT/tests.txt
#   bench     benchmarks/optimizer.py, masks.py and throughput.py; their numbers go to $OUT/optimizer.json and so on
#   cells     the runs of Table 7, by scripts/sweep.py --local, in runs/gpu. Runs that are not done when the time
#             is over save and stop; the next slice resumes them. $OUT/cells.tar.gz holds the finished runs:
#             `python scripts/collect.py out/cells.tar.gz` makes records of them
#   --seconds the time within which this ends      --jobs  runs side by side
#   --tiny    cells scaled down to a smoke test on a CPU, in runs/tiny
#   --        options for scripts/sweep.py, such as --seeds 0 or --only ham
#
# OUT defaults to out. Exit status: 0 nothing is left to do, 1 something failed, 2 wrong use or missing data, 85
# unfinished runs remain: the same command resumes them, 130 Ctrl-C.
# Packages that the machine lacks are installed from wheels/, filled beforehand by
#   pip wheel --no-deps -c constraints.txt -w wheels hydra-core omegaconf antlr4-python3-runtime
# (add what else it lacks: pytest pytest-timeout hypothesis mpmath tqdm timm scikit-learn ...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "gpu.sh: $1" >&2
    exit 2
}

seconds=540 jobs=3 tiny="" stages="" options=()
while [ $# -gt 0 ]; do
    case $1 in
    --seconds) seconds=${2:-} && shift ;;
    --jobs) jobs=${2:-} && shift ;;
    --tiny) tiny=yes ;;
    tests | bench | cells) stages+=" $1" ;;
    --) shift && options=("$@") && break ;;
    *) fail "unknown argument $1: choose from tests, bench, cells, --seconds, --jobs, --tiny, or put it after --" ;;
    esac
    shift || break
done
[[ $seconds =~ ^[1-9][0-9]*$ && $jobs =~ ^[1-9][0-9]*$ ]] || fail "--seconds and --jobs must be numbers above 0"
stages=${stages:-tests bench cells}

out=${OUT:-out}
site=$PWD/build/site
export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
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
[ -z "$lacking" ] || fail "$python lacks $lacking: fill wheels/ on a machine with internet access, \
pip wheel --no-deps -c constraints.txt -w wheels $lacking"
[ -n "$tiny" ] || "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" ||
    fail "torch sees no GPU here; 'benchmarks/gpu.sh --tiny cells' tries the script without one"
mkdir -p "$out"

child=""
for name in INT TERM USR1 HUP; do
    # shellcheck disable=SC2064
    trap "[ -z \"\$child\" ] || kill -s $name \$child 2>/dev/null || true" $name
done

run() { # a command that receives this script's signals; returns its exit status
    "$@" &
    child=$!
    while kill -0 $child 2>/dev/null; do # a trap interrupts wait
        wait $child || true
    done
    wait $child || { local ended=$? && child="" && return $ended; }
    child=""
}

gpu_tests() { # seconds; fails if every test is skipped
    local ended=0
    run timeout "$1" "$python" -m pytest tests/gpu -m gpu -q --no-header -p no:cacheprovider \
        >"$out/tests.txt" 2>&1 || ended=$?
    sed -i -e "s#$PWD#.#g" -e "s#$HOME#~#g" -e "s#$(uname -n)#host#g" "$out/tests.txt"
    echo "tests: $(tail -n 1 "$out/tests.txt")"
    [ $ended = 0 ] && grep -q " passed" "$out/tests.txt" || return 1
}

gpu_benchmarks() { # seconds for all
    local name ends=$((SECONDS + $1)) device
    for name in optimizer masks throughput; do
        device=(--device cuda)
        [ $name != throughput ] || device=()
        run timeout $((ends > SECONDS ? ends - SECONDS : 1)) "$python" "benchmarks/$name.py" "${device[@]}" \
            --json "$out/$name.json" || return 1
    done
}

run_stage() { # stage, seconds left
    case $1 in
    tests) gpu_tests $(($2 / 2)) ;;
    bench) gpu_benchmarks $(($2 / 2)) ;;
    cells)
        local scale=(--runs runs/gpu)
        [ -z "$tiny" ] || scale=(--runs runs/tiny --demo tiny)
        run "$python" scripts/sweep.py --table 7 --local "${scale[@]}" --jobs "$jobs" --seconds "$2" \
            --pack "$out/cells.tar.gz" "${options[@]}"
        ;;
    esac
}

status=0
for stage in $stages; do
    ended=0
    left=$((seconds - SECONDS))
    run_stage "$stage" $((left > 2 ? left : 2)) || ended=$?
    [ $ended != 130 ] || exit 130
    # of several statuses, the first of 2, 85 and 1
    case $ended in
    0) ;;
    2) status=2 ;;
    85) [ $status = 2 ] || status=85 ;;
    *) [ $status != 0 ] || status=1 ;;
    esac
done
exit $status
