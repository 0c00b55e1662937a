"""Meta-learning itself: inner loop, outer loop, evaluation, and the memory that they need."""
