"""What every stage shares: the nouns (records), files that are whole or absent (store), seeds, process, errors."""
