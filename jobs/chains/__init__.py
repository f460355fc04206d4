"""Chains for real use, for `pairmill run`: docs/bootstrapping.md describes `capfilt.yaml`."""
