"""Annotated records -> Example, each asked through one pattern (Flan)."""
