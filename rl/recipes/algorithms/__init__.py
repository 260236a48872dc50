"""One recipe for each algorithm: what `algo=NAME` changes in any other."""
