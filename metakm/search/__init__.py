"""Hyper-parameter search on meta-validation with Optuna, the same for all strategies."""
