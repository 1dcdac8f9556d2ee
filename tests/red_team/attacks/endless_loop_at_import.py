"""Never finishes loading."""

# task: total

while True:
    pass
