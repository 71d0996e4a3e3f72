"""The one error that command lines turn into a clear line and exit code 2."""


class UserError(Exception):
    """Something the user can put right: the message names the wrong value, what would be right, and the next step."""
