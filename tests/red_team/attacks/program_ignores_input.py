"""Leaves its input unread and prints a constant."""

# task: program

print(6)
