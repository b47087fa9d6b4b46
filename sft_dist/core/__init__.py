"""What every stage shares.

records    the nouns that stages exchange
files      files that are written whole or not at all, and fingerprints; locks: one writer at a time
runfolder  the files of a run
rng        a random stream for each use, derived from the one seed by name; sample: a fair sample of a stream
process    environment, limits and resources of this process; errors: what a user is told
"""
