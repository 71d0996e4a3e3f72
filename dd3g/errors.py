"""The one error that command lines turn into a clear line and exit code 2."""


class UserError(Exception):
    """What the user can put right: the message names the wrong value, a right one, and the next step."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its kind when it says nothing."""
    if isinstance(error, KeyError):  # whose words are the key alone
        return f"there is no {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
