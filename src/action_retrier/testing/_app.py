"""What is lent, watched and worked off is an App, and not what was made of it."""

from ..app import App


def check_app(app: object) -> None:
    """Raise TypeError for what is no App; a retrier is easily taken for one."""
    if not isinstance(app, App):
        raise TypeError(f"pass the App, not {app!r}" + (_OF_A_RETRIER if hasattr(app, "_calls") else ""))


_OF_A_RETRIER = ": a retrier follows the App that it was made of"
