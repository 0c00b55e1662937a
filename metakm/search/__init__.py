"""Hyper-parameters of strategies chosen on meta-validation alone, alike for all, with Optuna."""
