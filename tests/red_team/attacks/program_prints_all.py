"""Prints every number there is, hoping that the answer is among them."""

# task: program

while True:
    print(*range(100), sep="\n")
