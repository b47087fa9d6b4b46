"""Example -> Tokens | Drop: chat templates, tokenizers, loss spans. No torch, no transformers. Next: shards.

conversation  messages -> turns with their loss weight
builtin       the shipped templates: a Python writer (chatml, plain) and a Jinja twin (templates/) of each
jinja_template  any other Jinja template (run by jinja, examined by template_outline), with answer borders proven
draft         a rendered conversation in segments, before it is tokens
encoder       drafts -> ids and spans, a batch at a time
renderer      Renderer, which ties these together
tokenizer     text <-> ids, read by tokenizer_files
preview       what will be trained, for people to look at
"""
