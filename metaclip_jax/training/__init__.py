"""Training: the step and what surrounds it."""
