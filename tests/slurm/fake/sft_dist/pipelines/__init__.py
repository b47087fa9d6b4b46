"""The trainer of the stand-in."""
