"""Example -> Tokens | Drop: chat templates, tokenizers, loss spans. No torch, no transformers. Next: shards.

conversation  messages -> turns with their loss weight
builtin       the shipped templates: a Python writer (pen, write_*) and a Jinja twin (templates/) of each
foreign       any other Jinja template (jinja, probe, skeleton), with answer borders proven
tokens        drafts -> ids and spans, a batch at a time
chat          Renderer, which ties these together
tokenizer     text <-> ids; preview: what will be trained, for people to look at
"""
