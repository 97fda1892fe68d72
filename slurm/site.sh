# Settings of this cluster. Variables that are already set in the environment win.
# Before calling sbatch by hand, run `. slurm/site.sh`; scripts/sweep.py and every job read this file.
# shellcheck shell=bash

# sbatch reads these three.
# export SBATCH_ACCOUNT=${SBATCH_ACCOUNT:-my_account}
# export SBATCH_PARTITION=${SBATCH_PARTITION:-gpu}
# export SBATCH_QOS=${SBATCH_QOS:-normal}

# export HAM_DATA=${HAM_DATA:-/scratch/$USER/data}      # where data sets are, see docs/data.md
export HAM_ARRAY_THROTTLE=${HAM_ARRAY_THROTTLE:-16}     # tasks of one array that run at the same time
export HAM_MAX_RESTARTS=${HAM_MAX_RESTARTS:-20}         # a job that was restarted more often ends
# Seconds that a job waits after SIGTERM for SLURM to end or requeue it; must exceed GraceTime.
export HAM_TERM_WAIT=${HAM_TERM_WAIT:-900}

# Load modules and the Python environment, $HAM_VENV if it is set. Only jobs call it.
ham_activate() {
    # module load cuda/12.8
    local venv=${HAM_VENV:-${VIRTUAL_ENV:-$HAM_ROOT/.venv}}
    if [ -e "$venv/bin/activate" ]; then
        # shellcheck disable=SC1091
        . "$venv/bin/activate"
    elif [ -n "${HAM_VENV:-}" ]; then
        ham_fail 2 "HAM_VENV=$HAM_VENV has no bin/activate: set it to a Python environment that every node can read"
    fi
}
