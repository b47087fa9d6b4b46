"""The command that trains: `command` writes the run folder and starts the ranks, each of which runs `worker`."""
