"""Stands in for the package in tests of the launch scripts: same commands and files, a model of one number."""
