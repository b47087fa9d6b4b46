"""(answer, options) -> why it is not kept, or None: verifiers that need no model. Next: construct keeps by them, evals judges by them.

`VERIFIERS` in verifiers/table.py is the one table; checks that stand in a record never run code.
"""
