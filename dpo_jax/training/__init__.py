"""Training: the step, the loop, and what a run leaves on disk."""
