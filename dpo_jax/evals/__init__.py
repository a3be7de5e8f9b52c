"""Evaluations of a policy besides its training loss."""
