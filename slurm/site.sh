# What differs between clusters, and nothing else. What is set in the environment already wins.
# `. slurm/site.sh` before sbatch by hand; scripts/sweep.py and every job read it themselves.
# shellcheck shell=bash

# sbatch reads these three itself.
# export SBATCH_ACCOUNT=${SBATCH_ACCOUNT:-my_account}
# export SBATCH_PARTITION=${SBATCH_PARTITION:-gpu}
# export SBATCH_QOS=${SBATCH_QOS:-normal}

# export HAM_DATA=${HAM_DATA:-/scratch/$USER/data}      # where data sets lie, see README, Data
export HAM_ARRAY_THROTTLE=${HAM_ARRAY_THROTTLE:-16}     # runs of one array that run at a time
export HAM_MAX_RESTARTS=${HAM_MAX_RESTARTS:-20}         # a job that was restarted more often ends
# Seconds that a job stays alive after SIGTERM for SLURM to end or requeue it: more than its GraceTime.
export HAM_TERM_WAIT=${HAM_TERM_WAIT:-900}

# Modules and the Python environment, $HAM_VENV if it is set; only jobs call it.
ham_activate() {
    # module load cuda/12.8
    local venv=${HAM_VENV:-${VIRTUAL_ENV:-$HAM_ROOT/.venv}}
    if [ -e "$venv/bin/activate" ]; then
        # shellcheck disable=SC1091
        . "$venv/bin/activate"
    elif [ -n "${HAM_VENV:-}" ]; then
        ham_fail 2 "HAM_VENV=$HAM_VENV has no bin/activate: give a Python environment that every node sees"
    fi
}
