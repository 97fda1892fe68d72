"""Selection, status and launch of runs, on a SLURM cluster or on this machine. Imports no torch."""
