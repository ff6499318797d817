"""The error of a user's mistake."""


class UserError(ValueError):
    """Mistake of the user: one line with place, expected, found, and what to do."""
