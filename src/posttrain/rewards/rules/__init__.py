"""Rewards computed by rules, without a model or a server."""
