"""Datasets out of the lake."""
