"""Exported model + <data.dir>/eval/*.jsonl -> eval/generations.jsonl, eval/scores.json. Next: report.

`tasks` reads what is evaluated, `generate` and `loss` run the model over it (the only modules that reach torch),
`baselines` answers without a model, `score` judges all of them by one set of metrics, `probes` asks whether the
instruction mattered at all.
"""
