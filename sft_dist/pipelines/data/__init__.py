"""The commands that turn sources into token stores: construct, check, preview, prepare, score, card."""
