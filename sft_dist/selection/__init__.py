"""Example -> where it goes: trained on, evaluated, dropped with a reason. Next: render, shards."""
