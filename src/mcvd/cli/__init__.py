"""The command line: one file a command, each a dataclass `Command` of its options with a `run` method."""
