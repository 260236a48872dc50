"""Losses: one value for every action token, and how the values of a whole step become one number."""
