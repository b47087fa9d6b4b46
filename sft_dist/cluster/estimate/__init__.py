"""Config of the model and of the run -> memory, time and disk that it needs. No torch."""
