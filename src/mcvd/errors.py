"""The exception that means "the user can fix this": its text is one line (what was wrong, where, what to do)."""


class McvdError(Exception):
    """A problem in the input, the files or the options; the command line prints only this line and exits with 1."""


class Unwritable(McvdError):
    """A destination cannot be written (disk full): this stops the work, as it is not the fault of what is read."""
