"""Annotated records and promptsource templates -> Example (P3)."""
