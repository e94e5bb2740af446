"""Durations in words."""


def duration(seconds: float) -> str:
    """As in "2 h 5 min", "3 min 20 s" or "41 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
