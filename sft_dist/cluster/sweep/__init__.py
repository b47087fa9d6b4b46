"""Overrides with several values -> a search space, its trials, their folder and the metric that ranks them."""
