"""Evaluations: what a policy is like, beside its training loss."""
