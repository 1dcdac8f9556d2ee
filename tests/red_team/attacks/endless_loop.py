"""Never returns."""

# task: total


def total(numbers):
    while True:
        pass
