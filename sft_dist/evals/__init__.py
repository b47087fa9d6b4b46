"""Exported model + <data.dir>/eval/*.jsonl -> eval/generations.jsonl, eval/scores.json. Next: report.

splits     reads what is evaluated
generate   and loss: run the model over it (the only modules that reach torch), through resumable_work
baselines  answers without a model
probes     changes prompts, to measure whether the instruction mattered
score      computes the same metrics for all answers
"""
