"""Preference losses over whole episodes."""
