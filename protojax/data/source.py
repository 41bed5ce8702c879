"""Sources of examples, and the error they raise."""


class DataError(ValueError):
    """Data is missing, malformed or impossible; the message names it and says what to do."""
