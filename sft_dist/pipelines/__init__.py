"""The only code that knows several stages: prepare, train, evaluate, and what a person sees of them."""
