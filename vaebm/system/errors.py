"""The error of a user's mistake."""


class UserError(ValueError):
    """A mistake of the user's: one line that says where, what was expected, what was found and what to do."""
