"""The commands that follow training: export, evaluate."""
