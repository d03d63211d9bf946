"""Backups, and Postgres made anew from the log and the lake."""
