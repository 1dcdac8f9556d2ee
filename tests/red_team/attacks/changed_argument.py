"""Changes the argument that the expected value is computed from."""

# task: computed
# fools: exit status


def total(numbers):
    numbers.clear()
    return 0
