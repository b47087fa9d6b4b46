"""Exported model + <data.dir>/eval/*.jsonl -> eval/generations.jsonl, eval/scores.json. Next: report.

splits           reads what is evaluated
generate         runs the model over it; with `loss` and `extraction` the only modules that reach torch
loss             the model's loss on the answers, and the tokens that it finds likeliest
extraction       whether it goes on with answers word for word
baselines        answers without a model
metrics          the table of scores, and which fits a task
statistics       intervals over tasks, paired contrasts, tests
score            judges model, base and baselines
probes           what kind of learning it was; `probe_material` has what they are made from and their statistics
constraints      constraints and formats that a program checks
resumable_work   parts that are kept when a process ends
"""
