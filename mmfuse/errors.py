"""The one exception for what a user can mend."""


class UserError(ValueError):
    """A mistake in what the user gave; its message is one line that names the value, the place and the fix.

    The command line prints it and exits with 2.
    """
