"""One run, from its config to its row: training, checkpoints, evaluation, loading."""
