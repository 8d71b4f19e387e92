"""Tests of the mode dump."""
