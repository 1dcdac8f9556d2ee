"""Memory, traffic and time of a run on ranks that are not there: `posttrain plan`."""
