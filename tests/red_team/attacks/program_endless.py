"""Prints the right answer and never ends."""

# task: program

print(sum(map(int, input().split())), flush=True)
while True:
    pass
