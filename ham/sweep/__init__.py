"""Runs of the plan on a cluster or on this machine: their states, and how they are launched. No torch."""
