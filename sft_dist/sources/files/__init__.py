"""Files -> records: JSON, JSON lines, Parquet, CSV, text; plain or compressed; streamed."""
