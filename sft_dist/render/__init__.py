"""Example -> Tokens | Drop: chat templates, tokenizers, loss spans. No torch, no transformers. Next: shards.

conversation    messages -> turns with their loss weight
resolve         name of a template -> Template: its text, the tokens that end a turn, how a conversation is laid out
builtin         the shipped templates: a writer in Python (chatml, plain) and a Jinja twin (templates/) of each
compiled_template  text of any other chat template -> a function from messages to text
inspection      what is known of such a template before any record: its stop tokens, its place for thoughts
jinja_template  conversation -> parts with proven answer borders (template_outline: a rendering with holes)
encoder         parts -> ids and spans, a batch at a time
part_weights    drafts whose turns have several loss weights, cut where the weight changes
renderer        Renderer, which ties these together
tokenizer       text <-> ids
preview         what will be trained, for people to look at
"""
