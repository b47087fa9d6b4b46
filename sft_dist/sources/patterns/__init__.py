"""Annotated records of any kind -> Example, each asked through pattern pairs of the user's own file."""
