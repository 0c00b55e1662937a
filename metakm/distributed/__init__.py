"""Data-parallel training of one run over several processes that torchrun starts."""
