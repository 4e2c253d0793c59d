"""Decides who is let in: the auth switch and its drivers."""
