"""Trainers: one file a stage."""
