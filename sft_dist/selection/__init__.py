"""Example -> where it goes: trained on, evaluated, or dropped with a reason. Next: render, shards.

facts           what can be said of each record alone: a table for each block of a source, made once, in parallel
joins           which records have a key in common with another one, by DuckDB
judge           facts and the hold-out -> the side of each record, block by block; texts are read again where they decide
across_records  applies the rules that need several: contamination, duplicates
id_files         joins files of any tool to the records by id; by_id: what listed ids and scores leave out; budget: and a budget
ordered_pass    verdicts of all blocks, in order -> the selection of each source, the evaluation sets, the rejects
sides           runs all of it over every source; files: the decision on disk; tables, workers: what blocks are written and made with
tokenize        renders the kept records of a source into its store
"""
