"""Makes the parser give up, inside the candidate's process."""

# task: total

total = eval("(" * 10**6 + "6" + ")" * 10**6)
