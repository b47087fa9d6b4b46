"""Files of a run folder -> report.html, the table at the end of a run, a comparison of runs. Reads nothing else.

`read` turns the files into nouns and says what is missing, `figures` draws, `sections` writes, `run` and `compare`
assemble. A run that crashed or still runs gets a report too.
"""
