"""The commands that plan and start work on machines: estimate, doctor, submit."""
