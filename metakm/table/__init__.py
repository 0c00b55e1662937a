"""Table III: rows of runs beside the published values."""
