# The life of a training job. The batch scripts beside it source this file under `set -euo pipefail`.
#
#   SIGUSR1 (the time limit is near): train.py saves and exits with 85, then this task alone is requeued.
#   SIGTERM (preemption or scancel):  train.py saves, and this script waits for SLURM to end it. A script that
#                                     ends by itself is a failed job, which SLURM does not requeue; to requeue
#                                     it here would undo a scancel.
# shellcheck shell=bash

SAVED=85 # train.py's exit status after a signal
caught="" # signals so far
step=""   # srun's process
trap 'caught+=" USR1"; [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true' USR1
trap 'caught+=" TERM"; [ -z "$step" ] || kill -TERM "$step" 2>/dev/null || true' TERM
cd "$HAM_ROOT" || exit
. slurm/site.sh

ham_say() { echo "$(date '+%F %T')  slurm: $*" >&2; }

ham_fail() { # status, message
    ham_say "$2"
    exit "$1"
}

# The line of a manifest of scripts/sweep.py that belongs to this array task.
ham_line() { # manifest
    local manifest=$1 name line
    [ -r "$manifest" ] || ham_fail 2 "cannot read $manifest: submit again"
    name=$(basename "$manifest" .txt)
    [ "manifest-$(sha256sum <"$manifest" | cut -c1-12)" = "$name" ] ||
        ham_fail 2 "$manifest was changed after it was written: delete it and submit again"
    line=$(sed -n "${SLURM_ARRAY_TASK_ID:?start it by sbatch --array}p" "$manifest")
    [ -n "$line" ] || ham_fail 2 "$manifest has no line $SLURM_ARRAY_TASK_ID: submit again"
    echo "$line"
}

# This task's id. The SLURM_JOB_ID of an array's last task is the array's own: a requeue of that restarts all.
ham_task() {
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
        echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# Run train.py with these arguments, once per task of the job.
ham_train() {
    local restarts=${SLURM_RESTART_COUNT:-0} status=0 name found=0
    for name in HAM_MAX_RESTARTS HAM_TERM_WAIT; do
        [[ ${!name} =~ ^(0|[1-9][0-9]*)$ ]] ||
            ham_fail 2 "$name=${!name} is no number: set it in slurm/site.sh or the environment"
    done
    ((restarts <= HAM_MAX_RESTARTS)) ||
        ham_fail "$SAVED" "restarted $restarts times, HAM_MAX_RESTARTS is $HAM_MAX_RESTARTS: submit again"
    set +u # modules and activation scripts are not written for it
    ham_activate
    set -u
    python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null || found=$?
    ((found == 0 || found > 128)) || # a signal's
        ham_fail 2 "$(command -v python || echo "no python: it") has no torch: set HAM_VENV, see slurm/site.sh"
    ham_say "job $(ham_task), start $((restarts + 1)), on ${SLURM_JOB_NODELIST:-?}: train.py $*"

    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since 22.05 srun does not take it from the job
    # Ranks end one after the other with 85, and train.py itself ends those whose peer is lost.
    srun --kill-on-bad-exit=0 python -u train.py "$@" &
    step=$!
    # A signal that came before srun was there still has to reach it.
    case $caught in *TERM*) kill -TERM "$step" ;; *USR1*) kill -USR1 "$step" ;; esac
    while kill -0 "$step" 2>/dev/null; do # a trap interrupts wait
        wait "$step" || true
    done
    wait "$step" || status=$?
    step=""
    ((status != 0)) || return 0

    # 128 + n: the signal came before train.py had its handlers, so there was nothing to save
    if [[ $caught == *TERM* || $status = $((128 + 15)) || ($status = "$SAVED" && -z $caught) ]]; then
        ham_wait "$status"
    elif [[ $caught == *USR1* && ($status = "$SAVED" || $status = $((128 + 10))) ]]; then
        ham_requeue
    fi
    exit "$status"
}

ham_requeue() {
    local task state
    task=$(ham_task)
    state=$(squeue --noheader --jobs="$task" --format=%T) || state=RUNNING # no answer: try all the same
    [ "$state" = RUNNING ] || return 0 # cancelled in the meantime: it stays so
    ham_say "saved; requeueing $task"
    for _ in 1 2 3; do
        if scontrol requeue "$task"; then return 0; fi
        sleep 10
    done
    ham_say "scontrol requeue $task failed: submit again to go on"
}

ham_wait() { # train.py's exit status
    local deadline=$((SECONDS + HAM_TERM_WAIT)) left="ended with $1"
    case $1 in "$SAVED") left=saved ;; $((128 + 15))) left="nothing to save yet" ;; esac
    ham_say "SLURM has $HAM_TERM_WAIT s to end this job"
    ham_say "stopped by SIGTERM: cancelled or preempted, $left" # what --status shows in the end
    while ((SECONDS < deadline)); do
        sleep 1 &
        wait $! || true
    done
    ham_say "SLURM did not end this job: submit again to go on"
}
