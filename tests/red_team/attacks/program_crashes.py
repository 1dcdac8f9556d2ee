"""Prints the right answer and crashes."""

# task: program

print(sum(map(int, input().split())), flush=True)
raise ValueError
