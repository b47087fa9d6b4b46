"""Example -> where it goes: trained on, evaluated, or dropped with a reason. Next: render, shards.

per_record      applies the hold-out and the rules that need one record
across_records  applies the rules that need several: contamination, duplicates, quality scores
assign          runs both over every source and decides each record's place; files: the decision on disk
tokenize        renders the kept records of a source into its store
"""
