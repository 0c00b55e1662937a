"""Many runs: which there are, what has become of each, and who computes them."""
