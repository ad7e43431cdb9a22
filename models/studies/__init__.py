"""Studies: which models were compared, on which seeds, and what their tables show. Logs of runs are in `results/`."""
