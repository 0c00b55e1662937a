"""Differentiable functions with closed-form derivatives: convolution, norm-pool-ReLU, the modulator's layers."""
