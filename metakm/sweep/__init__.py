"""Many runs: which there are, what has become of each, and where they are computed."""
