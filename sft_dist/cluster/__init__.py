"""A validated config -> what it needs, whether the nodes are fit, and the jobs that run it: estimate, doctor, submit."""
