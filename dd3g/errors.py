"""The one error that command lines turn into a clear line and exit code 2."""


class UserError(Exception):
    """What the user can put right: the message names the wrong value, a right one, and the next step."""
