# Functions of a training job. The batch scripts beside it source this file under `set -euo pipefail`.
#
#   SIGUSR1 (the time limit is near): train.py saves and exits with 85, then only this task is requeued.
#   SIGTERM (preemption or scancel):  train.py saves, and this script waits for SLURM to end it. A script that
#                                     exits on its own is a failed job, which SLURM does not requeue; requeueing
#                                     it here would undo a scancel.
# shellcheck shell=bash

SAVED=85 # train.py's exit status after a signal
caught="" # signals received so far
step=""   # process id of srun
trap 'caught+=" USR1"; [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true' USR1
trap 'caught+=" TERM"; [ -z "$step" ] || kill -TERM "$step" 2>/dev/null || true' TERM
cd "$HAM_ROOT" || exit
. slurm/site.sh
# squeue would leave this job out, scontrol ask another cluster, and train.py take srun's ranks for one process.
unset "${!SQUEUE_@}" SLURM_CLUSTERS RANK WORLD_SIZE LOCAL_RANK

ham_say() { echo "$(date '+%F %T')  slurm: $*" >&2; }

ham_fail() { # status, message
    ham_say "$2"
    exit "$1"
}

# Print the line of this array task from a manifest of scripts/sweep.py.
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

# Print this task's id. The SLURM_JOB_ID of an array's last task is that of the array: requeueing it restarts all.
ham_task() {
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
        echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# Run train.py with these arguments, one process per task of the job.
ham_train() {
    local restarts=${SLURM_RESTART_COUNT:-0} status=0 name found=0
    for name in HAM_MAX_RESTARTS HAM_TERM_WAIT; do
        [[ ${!name} =~ ^(0|[1-9][0-9]*)$ ]] ||
            ham_fail 2 "$name=${!name} is not a number: set it in slurm/site.sh or the environment"
    done
    ((restarts <= HAM_MAX_RESTARTS)) ||
        ham_fail "$SAVED" "restarted $restarts times, HAM_MAX_RESTARTS is $HAM_MAX_RESTARTS: submit again"
    set +u # modules and activation scripts use unset variables
    ham_activate
    set -u
    python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null || found=$?
    ((found == 0 || found > 128)) || # above 128: a signal ended it
        ham_fail 2 "$(command -v python || echo "no python: it") has no torch: set HAM_VENV, see slurm/site.sh"
    ham_say "job $(ham_task), start $((restarts + 1)), on ${SLURM_JOB_NODELIST:-?}: train.py $*"

    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since SLURM 22.05 srun does not inherit it
    # Ranks exit with 85 one after the other, and train.py ends the ranks that lost a peer.
    srun --kill-on-bad-exit=0 python -u train.py "$@" &
    step=$!
    # Pass on a signal that came before srun was started.
    case $caught in *TERM*) kill -TERM "$step" ;; *USR1*) kill -USR1 "$step" ;; esac
    while kill -0 "$step" 2>/dev/null; do # a trap interrupts wait
        wait "$step" || true
    done
    wait "$step" || status=$?
    step=""
    ((status != 0)) || return 0

    # 128 + n: the signal came before train.py had installed its handlers, so there was nothing to save
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
    state=$(timeout -k 5 15 squeue --noheader --jobs="$task" --format=%T) || state=RUNNING # no answer: try anyway
    [ "$state" = RUNNING ] || return 0 # it was cancelled: leave it cancelled
    ham_say "saved; requeueing $task"
    for _ in 1 2 3; do
        if timeout -k 5 60 scontrol requeue "$task"; then return 0; fi
        sleep 10
    done
    ham_say "scontrol requeue $task failed: submit again to resume"
}

ham_wait() { # train.py's exit status
    local deadline=$((SECONDS + HAM_TERM_WAIT)) outcome="exit status $1"
    case $1 in "$SAVED") outcome=saved ;; $((128 + 15))) outcome="nothing to save yet" ;; esac
    ham_say "SLURM has $HAM_TERM_WAIT s to end this job"
    ham_say "stopped by SIGTERM: cancelled or preempted, $outcome" # the last line, which --status shows
    while ((SECONDS < deadline)); do
        sleep 1 &
        wait $! || true
    done
    ham_say "SLURM did not end this job: submit again to resume"
}
