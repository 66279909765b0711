"""Readers: everything is stored, little of it is read at a decode step."""
