"""Sweeps: the plan of many runs, the state of each, and their execution on one machine or on SLURM."""
