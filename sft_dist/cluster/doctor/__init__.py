"""Is each node fit to train? `checks` examine one node, `rendezvous` collects their results, `diagnose` names the unfit node."""
