"""A user's request to end the reasoning of a reply."""


class AnswerNow:
    """Whether the answer is requested, which a signal handler may set; and whether a budget looks at it."""

    is_requested = False
    is_watched = False
