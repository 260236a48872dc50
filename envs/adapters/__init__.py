"""Worlds of others as environments of ours, and ours served to others: Gymnasium and OpenEnv."""
